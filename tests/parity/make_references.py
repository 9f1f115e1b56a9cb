"""Write tests/references/data from Transformers in float64: `python tests/parity/make_references.py`."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil
from transformers.pipelines.depth_estimation import DepthEstimationPipeline

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "references"), str(TESTS / "parity")]

from cases import CASES, IMAGES, LAYER_BY_LAYER, PIPELINE, thinned  # noqa: E402
from reference import checkpoint_shapes, load_reference, run  # noqa: E402
from seeded import PREPROCESSOR, make_image, pixels, write_checkpoint  # noqa: E402


def kept(key: str, array: np.ndarray) -> np.ndarray:
    """Return an array as it is stored."""
    in_float32 = key.startswith(("small", "pipeline")) and array.dtype == np.float64
    return array.astype(np.float32) if in_float32 else array


def references(folder: Path) -> tuple[dict, dict]:
    """All arrays and all tensor shapes."""
    shapes, arrays = {}, {}
    for name, (config, sizes) in CASES.items():
        shapes[name] = checkpoint_shapes(config.to_dict())
        model = load_reference(write_checkpoint(folder / name, config.to_dict(), shapes[name]))
        for size in sizes:
            key = f"{name}/{size[0]}x{size[1]}"
            layers = LAYER_BY_LAYER.get(name) == size
            output = run(model, pixels(*size), output_hidden_states=layers, output_attentions=layers)
            arrays[f"{key}/depth"] = thinned(name, output.predicted_depth.numpy())
            if layers:
                arrays[f"{key}/hidden_states"] = np.stack([h.numpy() for h in output.hidden_states])
                arrays[f"{key}/attentions"] = np.stack([a.numpy() for a in output.attentions])

    options = {key: value for key, value in PREPROCESSOR.items() if key != "image_processor_type"}
    processor = DPTImageProcessorPil(**options)
    for size in IMAGES:
        values = processor(Image.fromarray(make_image(*size)), return_tensors="np")["pixel_values"][0]
        arrays[f"processor/{size[0]}x{size[1]}"] = values.transpose(1, 2, 0)[::13, ::13]
        arrays[f"processor/{size[0]}x{size[1]}/size"] = np.array(values.shape[1:])

    # In float64 as well: torch's float32 depends on the processor, and moves pixels across the edge of a grey level.
    model = load_reference(folder / "tiny")
    pipeline = DepthEstimationPipeline(model=model, image_processor=DPTImageProcessorPil(**options))
    for size in PIPELINE:
        result = pipeline(Image.fromarray(make_image(*size)))
        arrays[f"pipeline/{size[0]}x{size[1]}/depth"] = np.asarray(result["depth"])
        arrays[f"pipeline/{size[0]}x{size[1]}/predicted_depth"] = result["predicted_depth"].numpy()
    return arrays, shapes


def main() -> None:
    data = TESTS / "references" / "data"
    data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        arrays, shapes = references(Path(folder))
    # float32 holds 1e-7 of a value, far below any bound; layer by layer and tiny maps stay float64.
    stored = {k: kept(k, v) for k, v in arrays.items()}
    np.savez_compressed(data / "references.npz", **stored)
    (data / "shapes.json").write_text(json.dumps(shapes, indent=0, sort_keys=True) + "\n")
    size = sum(file.stat().st_size for file in data.iterdir())
    print(f"{len(arrays)} arrays, {size / 1e6:.2f} MB")
    for key, value in arrays.items():
        if key.endswith("depth"):
            print(f"  {key}: mean {value.mean():.2f}, deviation {value.std():.2f}")


if __name__ == "__main__":
    main()
