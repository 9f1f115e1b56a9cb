"""Makes what `dajax check` compares with: python tools/check_depth.py.

The images are the bundled scene and its middle, in sizes that `tiny` takes as they are. Their depth is computed in
float64.
"""

from pathlib import Path

import jax
import numpy as np
from PIL import Image

import dajax

ASSETS = Path(dajax.__file__).parent / "assets"


def main():
    jax.config.update("jax_enable_x64", True)
    scene = Image.open(ASSETS / "scene.jpg").convert("RGB")
    width, height = scene.size
    middle = scene.crop((width // 2 - height * 3 // 8, 0, width // 2 + height * 3 // 8, height))
    estimator = dajax.DepthEstimator("tiny", dtype="float64")
    stored = {}
    for shape, image, size in (("landscape", scene, (224, 168)), ("portrait", middle, (168, 224))):
        pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        processed, _ = estimator.processor.preprocess_one(pixels)
        assert processed.shape == pixels.shape
        # The processor's pixels are float32 for everyone.
        depth = np.asarray(estimator.predict(processed[None].astype(np.float64)))[0]
        stored |= {f"{shape}_image": pixels, f"{shape}_depth": depth.astype(np.float32)}
    np.savez_compressed(ASSETS / "tiny" / "check.npz", **stored)


if __name__ == "__main__":
    main()
