"""Computes the path and shape of every parameter from the config alone, to check a checkpoint before it is read.

`model.init` says the same (a test holds the two together), but takes a second of tracing to say it.
"""

from __future__ import annotations

from collections.abc import Iterator

from dajax.config import DepthAnythingConfig, Dinov2Config

Shape = tuple[int, ...]


def parameter_shapes(config: DepthAnythingConfig) -> dict[str, Shape]:
    """Return {Flax path, joined by "/": shape} of all parameters, unused ones included."""
    return {
        **{f"backbone/{path}": shape for path, shape in _backbone(config.backbone_config)},
        **{f"neck/{path}": shape for path, shape in _neck(config)},
        **{f"head/{path}": shape for path, shape in _head(config)},
    }


def _dense(name: str, width_in: int, width_out: int, bias: bool = True) -> Iterator[tuple[str, Shape]]:
    yield f"{name}/kernel", (width_in, width_out)
    if bias:
        yield f"{name}/bias", (width_out,)


def _conv(name: str, side: int, width_in: int, width_out: int, bias: bool = True) -> Iterator[tuple[str, Shape]]:
    yield f"{name}/kernel", (side, side, width_in, width_out)
    if bias:
        yield f"{name}/bias", (width_out,)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}/scale", (width,)
    yield f"{name}/bias", (width,)


def _backbone(config: Dinov2Config) -> Iterator[tuple[str, Shape]]:
    width, mlp = config.hidden_size, config.mlp_width
    yield "embeddings/cls_token", (1, 1, width)
    yield "embeddings/position_embeddings", (1, config.grid_size**2 + 1, width)
    if config.use_mask_token:
        yield "embeddings/mask_token", (1, width)
    yield from _conv("embeddings/patch_embeddings", config.patch_size, config.num_channels, width)
    for i in range(config.num_hidden_layers):
        yield from _norm(f"layer_{i}/norm1", width)
        for name in ("query", "key", "value"):
            yield from _dense(f"layer_{i}/attention/{name}", width, width, config.qkv_bias)
        yield from _dense(f"layer_{i}/attention/output", width, width)
        yield f"layer_{i}/layer_scale1/lambda1", (width,)
        yield from _norm(f"layer_{i}/norm2", width)
        if config.use_swiglu_ffn:
            yield from _dense(f"layer_{i}/mlp/weights_in", width, 2 * mlp)
            yield from _dense(f"layer_{i}/mlp/weights_out", mlp, width)
        else:
            yield from _dense(f"layer_{i}/mlp/fc1", width, mlp)
            yield from _dense(f"layer_{i}/mlp/fc2", mlp, width)
        yield f"layer_{i}/layer_scale2/lambda1", (width,)
    yield from _norm("layernorm", width)


def _neck(config: DepthAnythingConfig) -> Iterator[tuple[str, Shape]]:
    fusion = config.fusion_hidden_size
    for i, (width, factor) in enumerate(zip(config.neck_hidden_sizes, config.reassemble_factors, strict=True)):
        yield from _dense(f"reassemble_{i}/projection", config.reassemble_hidden_size, width)
        if factor > 1:
            yield from _conv(f"reassemble_{i}/upsample", int(factor), width, width)
        elif factor < 1:
            yield from _conv(f"reassemble_{i}/downsample", 3, width, width)
        yield from _conv(f"conv_{i}", 3, width, fusion, bias=False)
        for unit in ("residual_layer1", "residual_layer2"):
            for conv in ("convolution1", "convolution2"):
                yield from _conv(f"fusion_{i}/{unit}/{conv}", 3, fusion, fusion)
        yield from _dense(f"fusion_{i}/projection", fusion, fusion)


def _head(config: DepthAnythingConfig) -> Iterator[tuple[str, Shape]]:
    half = config.fusion_hidden_size // 2
    yield from _conv("conv1", 3, config.fusion_hidden_size, half)
    yield from _conv("conv2", 3, half, config.head_hidden_size)
    yield from _dense("conv3", config.head_hidden_size, 1)
