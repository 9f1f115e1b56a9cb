"""Mistakes that ports of this network make, each to be noticed by a test of parity."""

from typing import NamedTuple


class Breakage(NamedTuple):
    """`old` stands exactly once in `file` and becomes `new`; the tests that `killers` selects (pytest -k) must fail."""

    name: str
    file: str
    old: str
    new: str
    killers: str


# One small map is enough for most: the mistake is everywhere in it.
MAP = "float64 and tiny-70x70"
EVEN = "float64 and tiny-56x84"
LAYERS = "every_layer and swiglu"
OFFICIAL = "test_official and 300x400"

BREAKAGES = [
    # Encoder
    Breakage(
        "tanh GELU",
        "model/layers.py",
        "1 + jax.lax.erf(x * math.sqrt(0.5))",
        "1 + jnp.tanh(0.79788456 * (x + 0.044715 * x**3))",
        MAP,
    ),
    Breakage("LayerNorm eps 1e-5", "kernels/reference.py", "+ epsilon)", "+ 1e-5)", MAP),
    Breakage(
        "LayerScale left out",
        "model/dinov2.py",
        "return tokens_bnd * parameter(",
        "return tokens_bnd + 0 * parameter(",
        MAP,
    ),
    Breakage("taps not normalised", "model/dinov2.py", "taps = norm.each(taps)", "pass", MAP),
    Breakage(
        "taps counted from 0", "model/dinov2.py", "hidden_states[i] for i in", "hidden_states[i - 1] for i in", MAP
    ),
    Breakage(
        "taps in reverse", "model/dinov2.py", "for i in config.out_indices)", "for i in config.out_indices[::-1])", MAP
    ),
    Breakage(
        "gate and up swapped",
        "model/dinov2.py",
        "gate_bnm, up_bnm = jnp",
        "up_bnm, gate_bnm = jnp",
        "float64 and swiglu",
    ),
    Breakage(
        "sigmoid gate for SiLU", "model/dinov2.py", "nn.silu(gate_bnm)", "nn.sigmoid(gate_bnm)", "float64 and swiglu"
    ),
    Breakage("no scale in attention", "kernels/cpu.py", "keepdims=True)) * scale)", "keepdims=True)))", MAP),
    Breakage(
        "scale by all heads' width", "kernels/cpu.py", "scale = query_nd.shape[-1] ** -0.5", "scale = 32**-0.5", MAP
    ),
    Breakage(
        "softmax without its sum",
        "kernels/cpu.py",
        "mixed_nd / unnormalised_nm.sum(-1, dtype=scores_nm.dtype, keepdims=True)",
        "mixed_nd",
        MAP,
    ),
    # Another way through attention: the one that returns its weights.
    Breakage("softmax over queries", "kernels/reference.py", "axis=-1).astype", "axis=-2).astype", LAYERS),
    Breakage(
        "no scale in the returned weights",
        "kernels/reference.py",
        "scores_bhnm * query_bnhd.shape[-1] ** -0.5",
        "scores_bhnm",
        LAYERS,
    ),
    Breakage("rows and columns of positions swapped", "model/dinov2.py", '"Hh,Ww,hwd->HWd"', '"Hh,Ww,whd->HWd"', EVEN),
    Breakage("positions by the authors' +0.1", "model/dinov2.py", "grid / (n + offset)", "grid / (n + 0.1)", EVEN),
    Breakage("bicubic a = -0.5", "resample.py", "a: float = -0.75,", "a: float = -0.5,", EVEN),
    Breakage("patches of the wrong order", "model/dinov2.py", '"bhywxc,yxcd->bhwd"', '"bhywxc,xycd->bhwd"', MAP),
    # Neck
    Breakage(
        "padding SAME",
        "kernels/reference.py",
        "padding = ((row_padding, row_padding), (1, 1))",
        'padding = "SAME" if stride == 2 else ((row_padding, row_padding), (1, 1))',
        EVEN,
    ),
    Breakage(
        "class token kept, last patch dropped", "kernels/reference.py", "tokens_bnd[:, 1:]", "tokens_bnd[:, :-1]", MAP
    ),
    Breakage(
        "no ReLU before the convolutions",
        "kernels/reference.py",
        "convolve(jax.nn.relu(x), weights, dtype)",
        "convolve(x, weights, dtype)",
        MAP,
    ),
    Breakage("no skip in the residual unit", "kernels/reference.py", "return features_bhwc + x", "return x", MAP),
    Breakage(
        "transposed convolution flipped",
        "kernels/reference.py",
        '"bhwc,yxcd->bhywxd", features_bhwc, blocks,',
        '"bhwc,yxcd->bhywxd", features_bhwc, blocks[::-1, ::-1],',
        MAP,
    ),
    Breakage(
        "half-pixel upsampling",
        "resample.py",
        "low, rest = np.divmod(np.arange(size_out, dtype=np.int64) * (size_in - 1), steps)",
        "steps = 2 * size_out\n"
        "    low, rest = np.divmod(np.clip((2 * np.arange(size_out) + 1) * size_in - size_out, 0, None), steps)\n"
        "    low = np.minimum(low, size_in - 1)",
        MAP,
    ),
    Breakage(
        "finer level not refined",
        "model/dpt.py",
        "features_bhwc + unit1(finer_bhwc)",
        "features_bhwc + finer_bhwc",
        MAP,
    ),
    # Head
    Breakage(
        "max_depth forgotten",
        "model/dpt.py",
        "activation(depth_bhw) * jnp.asarray(config.max_depth, depth_bhw.dtype)",
        "activation(depth_bhw)",
        "float64 and metric",
    ),
    Breakage(
        "ReLU in the metric head",
        "model/dpt.py",
        "nn.sigmoid if config.is_metric else nn.relu",
        "nn.relu",
        "float64 and metric",
    ),
    Breakage(
        "sigmoid in the relative head",
        "model/dpt.py",
        "nn.sigmoid if config.is_metric else nn.relu",
        "nn.sigmoid",
        MAP,
    ),
    Breakage(
        "no ReLU before the last layer",
        "kernels/reference.py",
        "project(jax.nn.relu(x_bhwc), projection, dtype)",
        "project(x_bhwc, projection, dtype)",
        MAP,
    ),
    # Weights
    Breakage(
        "query and key swapped",
        "weights/mapping.py",
        '_layer("backbone/layer_{i}/attention/{qkv}", f"{_V4}.attention.{{qkv}}", "linear")',
        '_layer("backbone/layer_{i}/attention/query", f"{_V4}.attention.key", "linear"),\n'
        '        *_layer("backbone/layer_{i}/attention/key", f"{_V4}.attention.query", "linear"),\n'
        '        *_layer("backbone/layer_{i}/attention/{qkv}", f"{_V4}.attention.{{qkv}}", "linear")',
        MAP,
    ),
    Breakage(
        "linear layers not transposed",
        "weights/mapping.py",
        '"linear": Transform(lambda x: x.T, lambda x: x.T)',
        '"linear": Transform(lambda x: x.reshape(x.shape[::-1]), lambda x: x.reshape(x.shape[::-1]))',
        MAP,
    ),
    Breakage(
        "kernels' height and width swapped",
        "weights/mapping.py",
        "x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)",
        "x.transpose(3, 2, 1, 0), lambda x: x.transpose(3, 2, 1, 0)",
        MAP,
    ),
    # Images
    Breakage(
        "BILINEAR for BICUBIC",
        "preprocessing/processor.py",
        "Image.Resampling(self.resample)",
        "Image.Resampling.BILINEAR",
        "processor",
    ),
    Breakage(
        "mean and deviation of 0.5",
        "preprocessing/processor.py",
        "IMAGENET_MEAN = (0.485, 0.456, 0.406)",
        "IMAGENET_MEAN = (0.5, 0.5, 0.5)",
        "processor",
    ),
    Breakage(
        "sides rounded down",
        "preprocessing/recipes.py",
        "count = round(multiples)",
        "count = math.floor(multiples)",
        "processor",
    ),
    Breakage(
        "depth resized back bilinearly",
        "preprocessing/processor.py",
        "else resize_cubic",
        "else resize_linear",
        "pipeline",
    ),
    # Style "official"
    Breakage("official: positions without the +0.1", "config.py", '"official": 0.1}', '"official": 0.0}', OFFICIAL),
    Breakage(
        "official: a = -0.5 for images",
        "preprocessing/recipes.py",
        'image.shape[0], size[0], coordinates="opencv"',
        'image.shape[0], size[0], a=-0.5, coordinates="opencv"',
        OFFICIAL,
    ),
    Breakage(
        "official: antialiased by Pillow",
        "preprocessing/processor.py",
        'if self.style == "official":\n            return',
        "if False:\n            return",
        OFFICIAL,
    ),
    Breakage(
        "official: overshoot clipped",
        "preprocessing/recipes.py",
        "pixels = pixels * factor",
        "pixels = np.clip(pixels, 0, 255) * factor",
        OFFICIAL,
    ),
    Breakage(
        "official: rounded to 8 bits",
        "preprocessing/recipes.py",
        "pixels * factor",
        "np.rint(pixels) * factor",
        OFFICIAL,
    ),
    Breakage(
        "official: colours BGR",
        "preprocessing/recipes.py",
        "apply_rows(rows, image)",
        "apply_rows(rows, image[:, :, ::-1])",
        OFFICIAL,
    ),
    Breakage(
        "official: upper_bound sizes",
        "preprocessing/recipes.py",
        "scales[1] > scales[0] if official",
        "scales[1] < scales[0] if official",
        OFFICIAL,
    ),
    Breakage(
        "official: depth resized back with half pixels",
        "resample.py",
        "low, high, fraction = linear_taps(size_in, size_out)\n    fraction",
        "at = np.clip((np.arange(size_out) + 0.5) * size_in / size_out - 0.5, 0, size_in - 1)\n"
        "    low, fraction = at.astype(int), at % 1\n"
        "    high = np.minimum(low + 1, size_in - 1)\n"
        "    fraction",
        OFFICIAL,
    ),
    Breakage(
        "official: depth resized back bicubically",
        "preprocessing/processor.py",
        "resize_linear if self.style",
        "resize_cubic if self.style",
        OFFICIAL,
    ),
]
