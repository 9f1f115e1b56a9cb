"""`python -m benchmarks.start`: times a whole process, from its start to the files of one image.

Three ways run in turns: Transformers' pipeline in a script, `dajax predict` with an empty compilation cache, and
`dajax predict` with the cache that the second has filled. What they read stays in the system's memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .figures import paired_ratio, quartiles
from .machine import describe, versions
from .measure import checkpoint_of

TRANSFORMERS = """
import sys
from PIL import Image
from transformers import pipeline
pipe = pipeline("depth-estimation", model=sys.argv[1])
pipe(Image.open(sys.argv[2]))["depth"].save(sys.argv[3])
"""
WAYS = ("transformers", "first", "again")


def measure(checkpoint: Path, image: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way in each round."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        cache, output = Path(folder, "cache"), Path(folder, "output")
        predict = [sys.executable, "-m", "dajax", "predict", image, "--model", checkpoint, "--output", output]
        script = [sys.executable, "-c", TRANSFORMERS, checkpoint, image, Path(folder, "depth.png")]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "JAX_COMPILATION_CACHE_DIR": str(cache)}
        # Every installation has the bytecode of the modules.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for i in range(rounds + 1):
            shutil.rmtree(cache, ignore_errors=True)
            for way, command in zip(WAYS, (script, predict, predict), strict=True):
                shutil.rmtree(output, ignore_errors=True)
                begin = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True, env=environment)
                if i > 0:  # the first round fills the system's caches
                    times[way].append(round(time.perf_counter() - begin, 3))
    return times


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Return the stored times as a table in Markdown."""
    titles = {
        "transformers": "Transformers, pipeline in a script",
        "first": "`dajax predict`, nothing compiled before",
        "again": "`dajax predict`, compiled by an earlier process",
    }
    lines = ["|  | median s (quartiles) | its time / Transformers' |", "| --- | --- | --- |"]
    for way, times in results["times_s"].items():
        low, median, high = quartiles(times)
        ratio = "" if way == "transformers" else f"{paired_ratio(times, results['times_s']['transformers']):.2f}"
        lines.append(f"| {titles[way]} | {median:.2f} ({low:.2f} to {high:.2f}) | {ratio} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser("python -m benchmarks.start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("docs/performance/start.json"))
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"), help="for checkpoints")
    options = parser.parse_args(argv)

    import jax

    import dajax

    image = Path(dajax.__file__).parent / "assets" / "scene.jpg"
    times = measure(checkpoint_of("small", options.folder).resolve(), image.resolve(), options.rounds)
    results = {"machine": describe(jax.devices()[0]), "versions": versions(), "times_s": times}
    print(table(results))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
