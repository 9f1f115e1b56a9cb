"""What the stored references are references of."""

from dataclasses import replace

from tiny import tiny_config, tiny_metric_config, tiny_swiglu_config

from dajax import DepthAnythingConfig


def _with_backbone(**changes) -> DepthAnythingConfig:
    config = tiny_config()
    return replace(config, backbone_config=replace(config.backbone_config, **changes))


# name -> (config, sizes). The training grid of the tiny ones is 5x5. Even grids tell padding (1, 1) from "SAME".
CASES = {
    "tiny": (tiny_config(), [(70, 70), (56, 84), (98, 70), (14, 14)]),
    "tiny-metric": (tiny_metric_config(), [(70, 70), (56, 84)]),
    "tiny-swiglu": (tiny_swiglu_config(), [(70, 70), (84, 112)]),
    "tiny-sparse-taps": (_with_backbone(num_hidden_layers=6, out_indices=(1, 2, 4, 6)), [(70, 70)]),
    "tiny-plain": (_with_backbone(qkv_bias=False, use_mask_token=False, apply_layernorm=False), [(56, 70)]),
    "small": (DepthAnythingConfig.small(), [(392, 518), (518, 518)]),
}
# Every hidden state and attention map of these is kept too.
LAYER_BY_LAYER = {"tiny": (56, 84), "tiny-swiglu": (70, 70)}

# Images (height, width) through the processor, and through the whole pipeline with the tiny model.
IMAGES = [(480, 640), (333, 500), (600, 400), (720, 1280), (37, 51), (518, 518), (900, 1200)]
PIPELINE = [(120, 90), (200, 333)]


def thinned(name: str, depth):
    """Cut a map to what is stored: all of a tiny one, every fifth pixel of a big one (prime to patches of 14)."""
    return depth if name.startswith("tiny") else depth[..., ::5, ::5]
