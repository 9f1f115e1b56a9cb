"""The implementations that are compared. Each makes a function without arguments of a `Setup`; one call of it is timed.

The weights are loaded beforehand, and the pixels are in the peer's layout and on its device. The first call compiles.
"""

from __future__ import annotations

import functools
import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .machine import threads

Run = Callable[[], Any]


@dataclass(frozen=True)
class Setup:
    """A checkpoint in Transformers' layout, and an image, both normalised and encoded. All peers get the same."""

    checkpoint: Path
    pixels: np.ndarray  # float32 [batch, height, width, 3]
    jpeg: bytes
    platform: str  # "cpu" or "gpu"

    @property
    def pixels_nchw(self) -> np.ndarray:
        """The pixels in PyTorch's order of axes."""
        return np.ascontiguousarray(self.pixels.transpose(0, 3, 1, 2))

    @property
    def torch_device(self) -> str:
        """PyTorch's name of the platform."""
        return "cuda" if self.platform == "gpu" else "cpu"


@dataclass(frozen=True)
class Peer:
    """One row of the tables."""

    title: str
    build: Callable[[Setup, str], Run]
    dtype: str = "float32"  # the computation dtype; "default" leaves the choice to the peer
    modules: tuple[str, ...] = ()  # modules that must be installed
    kind: str = "model"  # pixels to depth; or "jpeg": encoded image to depth in its size
    platforms: tuple[str, ...] = ("cpu", "gpu")

    def lacking(self, setup: Setup) -> str | None:
        """Return why this peer cannot run, or None."""
        missing = [module for module in self.modules if find_spec(module) is None]
        if missing:
            return f"{', '.join(missing)} not installed"
        square = setup.pixels.shape[1] == setup.pixels.shape[2]
        return "its images are square" if self.build is _keras_hub and not square else None


def as_array(output: Any) -> np.ndarray:
    """Return a peer's output as float32 [batch, height, width], or [height, width] of an image."""
    if hasattr(output, "cpu"):
        output = output.float().cpu()
    array = np.asarray(output, np.float32)
    return array[..., 0] if array.shape[-1] == 1 else array


def _dajax(setup: Setup, dtype: str) -> Run:
    import jax

    import dajax

    # An estimator has the right params: in half precision it keeps all but the encoder's matrices in float32.
    estimator = dajax.DepthEstimator(setup.checkpoint, dtype=dtype)
    model, params, pixels = estimator.model, estimator.params, jax.device_put(setup.pixels)
    apply = jax.jit(lambda params, pixels: model.apply({"params": params}, pixels).predicted_depth)
    return lambda: apply(params, pixels).block_until_ready()


def _dajax_jpeg(setup: Setup, dtype: str) -> Run:
    import dajax

    estimator = dajax.DepthEstimator(setup.checkpoint, dtype=dtype)
    return lambda: estimator(setup.jpeg)


def _torch_model(setup: Setup, dtype: str) -> Any:
    import torch
    from transformers import DepthAnythingForDepthEstimation

    torch.set_num_threads(threads())
    model = DepthAnythingForDepthEstimation.from_pretrained(
        setup.checkpoint, dtype=getattr(torch, dtype), attn_implementation={"backbone_config": "sdpa"}
    )
    return model.eval().to(setup.torch_device)


def _torch_run(setup: Setup, model: Any, apply: Any) -> Run:
    import torch

    pixels = torch.from_numpy(setup.pixels_nchw).to(model.device, model.dtype)

    def run() -> Any:
        with torch.inference_mode():
            depth = apply(pixels).predicted_depth
        if setup.platform == "gpu":
            torch.cuda.synchronize()
        return depth

    return run


def _transformers(setup: Setup, dtype: str) -> Run:
    model = _torch_model(setup, dtype)
    return _torch_run(setup, model, model)


def _transformers_compiled(setup: Setup, dtype: str) -> Run:
    import torch

    model = _torch_model(setup, dtype)
    # On a GPU max-autotune also brings CUDA graphs.
    mode = "max-autotune" if setup.platform == "gpu" else "default"
    return _torch_run(setup, model, torch.compile(model, mode=mode))


def _transformers_jpeg(setup: Setup, dtype: str) -> Run:
    import torch
    from PIL import Image
    from transformers import pipeline

    torch.set_num_threads(threads())
    pipe = pipeline("depth-estimation", str(setup.checkpoint), dtype=getattr(torch, dtype), device=setup.torch_device)
    return lambda: pipe(Image.open(io.BytesIO(setup.jpeg)))["predicted_depth"]


def exported(setup: Setup) -> Path:
    """Return an ONNX file of Transformers' model for these pixels' shape, exported once."""
    import torch

    class Depth(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = _torch_model(setup, "float32")

        def forward(self, pixel_values: Any) -> Any:
            return self.model(pixel_values).predicted_depth

    path = setup.checkpoint / f"{'x'.join(map(str, setup.pixels.shape[:3]))}.onnx"
    if not path.exists():
        pixels = torch.from_numpy(setup.pixels_nchw)
        torch.onnx.export(Depth().eval(), (pixels,), path, dynamo=True, verbose=False)
    return path


def _onnxruntime(setup: Setup, dtype: str) -> Run:
    import onnxruntime

    path = exported(setup)
    inputs = setup.pixels_nchw

    @functools.cache
    def session() -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    return lambda: session().run(None, {session().get_inputs()[0].name: inputs})[0]


def _openvino(setup: Setup, dtype: str) -> Run:
    import openvino

    path = exported(setup)
    inputs = setup.pixels_nchw

    @functools.cache
    def request() -> Any:
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads(), "PERFORMANCE_HINT": "LATENCY"}
        if dtype != "default":
            options["INFERENCE_PRECISION_HINT"] = "f32"
        return openvino.Core().compile_model(path, "CPU", options).create_infer_request()

    return lambda: request().infer([inputs], share_inputs=True, share_outputs=True)[0]


def _keras_hub(setup: Setup, dtype: str) -> Run:
    from flax.traverse_util import flatten_dict

    import dajax

    model, params = dajax.load(setup.checkpoint)
    estimator = keras_hub_estimator(model.config, setup.pixels.shape[1])
    values = {path: np.asarray(value) for path, value in flatten_dict(params, sep="/").items()}
    for variable in estimator.backbone.variables:
        value = values[_dajax_path(variable.path)]
        if _dajax_path(variable.path).endswith("upsample/kernel"):
            value = value.swapaxes(2, 3)  # transposed convolutions have their outputs first
        variable.assign(value.reshape(variable.shape))
    return lambda: estimator.predict_on_batch({"images": setup.pixels})["depths"]


def keras_hub_estimator(config: Any, side: int, dtype: str | None = None) -> Any:
    """Return keras-hub's network of a config on jax, with fresh weights.

    Args:
        config: dajax's config.
        side: the height and width of the images.
        dtype: Keras's policy, such as "mixed_bfloat16"; None for float32.
    """
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from keras_hub.models import DepthAnythingBackbone, DepthAnythingDepthEstimator, DINOV2Backbone

    encoder = config.backbone_config
    grid = encoder.grid_size * encoder.patch_size
    network = DepthAnythingBackbone(
        DINOV2Backbone(
            patch_size=encoder.patch_size,
            num_layers=encoder.num_hidden_layers,
            hidden_dim=encoder.hidden_size,
            num_heads=encoder.num_attention_heads,
            intermediate_dim=int(encoder.hidden_size * encoder.mlp_ratio),
            image_shape=(side, side, 3),
            position_embedding_shape=(grid, grid),
            apply_layernorm=True,
            dtype=dtype,
        ),
        reassemble_factors=config.reassemble_factors,
        neck_hidden_dims=config.neck_hidden_sizes,
        fusion_hidden_dim=config.fusion_hidden_size,
        head_hidden_dim=config.head_hidden_size,
        head_in_index=config.head_in_index,
        feature_keys=[f"stage{i}" for i in encoder.out_indices],
        dtype=dtype,
    )
    return DepthAnythingDepthEstimator(network, depth_estimation_type="relative", preprocessor=None)


_KERAS_TO_DAJAX = (
    (r"^(embeddings|layernorm)/", r"backbone/\1/"),
    (r"^encoder/layers_", "backbone/layer_"),
    (r"interpolated_", ""),
    (r"patch_embeddings/projection", "patch_embeddings"),
    (r"attention/attention/(attention_)?", "attention/"),
    (r"gamma$", "scale"),
    (r"beta$", "bias"),
    (r"reassemble_stage_([01])/resize", r"reassemble_\1/upsample"),
    (r"reassemble_stage_3/resize", "reassemble_3/downsample"),
    (r"reassemble_stage_", "reassemble_"),
    (r"convs_", "conv_"),
    (r"fusion_stage_", "fusion_"),
)


def _dajax_path(path: str) -> str:
    for pattern, replacement in _KERAS_TO_DAJAX:
        path = re.sub(pattern, replacement, path)
    return path


_TORCH = ("torch", "transformers")
_ONNX = (*_TORCH, "onnx", "onnxscript")

# The order is that of each round.
PEERS = {
    "dajax": Peer("dajax", _dajax),
    "dajax-bf16": Peer("dajax", _dajax, "bfloat16"),
    "dajax-fp16": Peer("dajax", _dajax, "float16", platforms=("gpu",)),
    "transformers": Peer("Transformers, sdpa", _transformers, modules=_TORCH),
    "transformers-compiled": Peer("Transformers, torch.compile", _transformers_compiled, modules=_TORCH),
    "onnxruntime": Peer("ONNX Runtime", _onnxruntime, modules=(*_ONNX, "onnxruntime"), platforms=("cpu",)),
    "openvino-f32": Peer("OpenVINO", _openvino, modules=(*_ONNX, "openvino"), platforms=("cpu",)),
    "openvino": Peer("OpenVINO, as it comes", _openvino, "default", modules=(*_ONNX, "openvino"), platforms=("cpu",)),
    "keras-hub": Peer("keras-hub on JAX", _keras_hub, modules=("keras_hub",)),
    **{
        f"transformers{way}-{short}": Peer(title, build, dtype, _TORCH, platforms=("gpu",))
        for short, dtype in (("bf16", "bfloat16"), ("fp16", "float16"))
        for way, title, build in (
            ("", "Transformers, sdpa", _transformers),
            ("-compiled", "Transformers, torch.compile", _transformers_compiled),
        )
    },
    "dajax-jpeg": Peer("dajax, DepthEstimator", _dajax_jpeg, kind="jpeg"),
    "transformers-jpeg": Peer("Transformers, pipeline", _transformers_jpeg, modules=_TORCH, kind="jpeg"),
}
