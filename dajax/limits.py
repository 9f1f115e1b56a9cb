"""Every bound in one place, with its reason. Input beyond a bound is refused before memory is taken for it."""

# Configurations. Depth Anything V2 Giant is 40 layers of width 1536; ViT-22B is 48 layers of 6144. Anything past
# these is a typing error or an attack, and would ask for memory before a weight is read.
MAX_LAYERS = 256
MAX_WIDTH = 16_384
MAX_CHANNELS = 16_384
MAX_MLP_RATIO = 64
MAX_IMAGE_SIZE = 16_384
MAX_PATCH_SIZE = 256
MAX_TAPS = 16
MAX_RESAMPLE_FACTOR = 64
MAX_PARAMETERS = 50_000_000_000

# config.json and preprocessor_config.json are a few kB; a megabyte leaves room for any extra field.
MAX_JSON_BYTES = 1_000_000

# The bound of the safetensors format itself (its Rust reader refuses longer headers).
MAX_SAFETENSORS_HEADER_BYTES = 100_000_000
# A Giant checkpoint has fewer than 1,000 tensors; optimizer state triples that. A header of 100,000 would take 100 MB.
MAX_TENSORS = 10_000
# What an error message lists before it says "and N more": all tensors of Giant twice, but not those of an attack.
MAX_LISTED_PROBLEMS = 2000

# Pictures. Pillow only warns at 89 megapixels and refuses at 179; a 315 kB PNG can decode to 778 MB. Phones make
# 200-megapixel files (16320x12240), so that is what passes; `max_pixels` raises or lowers it for one call.
MAX_PIXELS = 200_000_000
# Encoded bytes of one picture: 200 megapixels of 16-bit RGB, uncompressed.
MAX_IMAGE_BYTES = 1_200_000_000
# Tokens (patches of 14x14) that one processed picture may have. Attention is quadratic in them: 16,384 tokens are
# 1792x1792 pixels, twelve times the 1,369 of a 518x518 picture.
MAX_TOKENS = 16_384
