"""Small configs: the whole architecture in a few thousand parameters."""

from dataclasses import replace

from dajax import DepthAnythingConfig, Dinov2Config


def tiny_config(**changes) -> DepthAnythingConfig:
    """Four layers of width 32 on a 5x5 training grid; `changes` are fields of DepthAnythingConfig."""
    backbone = Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=70, out_indices=(1, 2, 3, 4)
    )
    values = {
        "backbone_config": backbone,
        "reassemble_hidden_size": 32,
        "neck_hidden_sizes": (8, 12, 16, 24),
        "fusion_hidden_size": 16,
        "head_hidden_size": 8,
    }
    return DepthAnythingConfig(**(values | changes))


def tiny_metric_config() -> DepthAnythingConfig:
    return tiny_config(depth_estimation_type="metric", max_depth=20)


def shallow_config(**changes) -> DepthAnythingConfig:
    """Two layers and two taps: for what compiles gradients again and again."""
    backbone = replace(tiny_config().backbone_config, num_hidden_layers=2, out_indices=(1, 2))
    values = {"backbone_config": backbone, "neck_hidden_sizes": (8, 12), "reassemble_factors": (2, 1)}
    return tiny_config(**(values | changes))


def single_config(**changes) -> DepthAnythingConfig:
    """One layer and one tap: the least that is a whole model, for tests of what is around it."""
    backbone = replace(tiny_config().backbone_config, num_hidden_layers=1, out_indices=(1,))
    values = {"backbone_config": backbone, "neck_hidden_sizes": (8,), "reassemble_factors": (1,)}
    return tiny_config(**(values | changes))


def single_metric_config() -> DepthAnythingConfig:
    return single_config(depth_estimation_type="metric", max_depth=20)


def shallow_metric_config() -> DepthAnythingConfig:
    return shallow_config(depth_estimation_type="metric", max_depth=20)


def shallow_swiglu_config() -> DepthAnythingConfig:
    config = shallow_config()
    return replace(config, backbone_config=replace(config.backbone_config, use_swiglu_ffn=True))


def tiny_swiglu_config() -> DepthAnythingConfig:
    config = tiny_config()
    return replace(config, backbone_config=replace(config.backbone_config, use_swiglu_ffn=True))
