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
# Bytes of an error that lists what is wrong with a checkpoint: what a terminal shows at once.
MAX_MESSAGE_BYTES = 1800

# Images. Pillow only warns at 89 megapixels and refuses at 179; a 315 kB PNG can decode to 778 MB. Phones make
# 200-megapixel files (16320x12240), so that is what passes; `max_pixels` raises or lowers it for one call.
MAX_PIXELS = 200_000_000
# Encoded bytes of one image: 200 megapixels of 16-bit RGB, uncompressed.
MAX_IMAGE_BYTES = 1_200_000_000
# Bytes that decoding takes at its peak for each pixel, besides the file: the coefficients of a progressive CMYK JPEG
# and the decoded image. An image whose decoder needs more has to be so much smaller than `max_pixels`.
DECODER_BYTES = 12
# Pixels times scans of a JPEG. Each scan takes 0.75 ns a pixel even if it is empty, so this is about 8 seconds.
# Programs write 10 scans, those that search for the smallest file up to 30; here 200 megapixels may have 50.
MAX_SCAN_PIXELS = 10_000_000_000
# Data of all scans takes 50 ns a byte. 200 megapixels of a photo are 80 MB.
MAX_PROGRESSIVE_BYTES = 300_000_000
# What may stand before the image in a JPEG. Pillow joins EXIF segments one by one, so its time grows with the square.
MAX_JPEG_HEADER_BYTES = 30_000_000
# Pillow decodes run-length encoded BMPs in Python: 50 ns a pixel and half a microsecond a run.
MAX_RLE_PIXELS = 50_000_000
MAX_RLE_BYTES = 30_000_000
# Text and colour profiles of a PNG, unpacked: Pillow refuses an image for more. libpng writes chunks of 8 kB, so an
# image of MAX_IMAGE_BYTES has 150,000.
MAX_METADATA_BYTES = 1_000_000
MAX_PNG_CHUNKS = 1_000_000
# Values of one tag of a TIFF: one strip for each row of the tallest image that 200 megapixels can be, and four planes.
MAX_TIFF_VALUES = 4_000_000
# Tokens (patches of 14x14) that one processed image may have. Attention is quadratic in them: 16,384 tokens are
# 1792x1792 pixels, twelve times the 1,369 of a 518x518 image.
MAX_TOKENS = 16_384

# Programs that one estimator keeps, one for each size and batch size. On a CPU a program of Small takes about 18 MB.
MAX_PROGRAMS = 128

# Images from URLs. A 200-megapixel image of a phone is 60 to 90 MB; what is larger is better downloaded first.
MAX_URL_BYTES = 100_000_000
# Seconds for everything together, from the name's look-up to the last byte; and for one attempt to connect, so that
# an address that does not answer leaves time for the host's other ones.
URL_TIMEOUT = 30.0
URL_CONNECT_TIMEOUT = 10.0
MAX_URL_TIMEOUT = 86_400.0
# From http to https, to www., to a storage host: three are common. Browsers stop at 20.
MAX_REDIRECTS = 5
# Request lines beyond 8 kB are refused by common servers.
MAX_URL_LENGTH = 8_000
# Shorter text is not tried as base64: it is the name of a file that does not exist. A PNG of one pixel has 92.
MIN_BASE64_LENGTH = 32

# PyTorch files. A training checkpoint of Giant with AdamW's state and a moving average has 5,000 records.
MAX_TORCH_RECORDS = 20_000
# One entry of the directory at the end of such a file: 46 bytes, a name with that of the file in it (at most 255), and
# fields of sizes and padding.
MAX_TORCH_ENTRY_BYTES = 500
# data.pkl of a training checkpoint of Large (AdamW's state and a moving average) has 230 kB and 80,000 opcodes. Each
# opcode puts at most one thing on the interpreter's stack, into its memo or into a container: this one number bounds
# them all, and the time.
MAX_TORCH_PICKLE_BYTES = 4_000_000
MAX_TORCH_OPCODES = 200_000
# numpy has at most 64 axes, parameters at most 5.
MAX_TORCH_RANK = 32
# `expand` makes a tensor of any size from one stored number. The largest matrix of Large has this many elements.
MAX_TORCH_EXPANDED_ELEMENTS = 4_194_304
# What tensors may take beyond twice their files: a few that are expanded, as above, and tied weights.
MAX_EXPANDED_BYTES = 64_000_000

# Seconds until the Hub counts as out of reach. The client alone would try for half a minute or longer.
HUB_CONNECT_TIMEOUT = 6.0
