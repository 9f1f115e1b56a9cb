"""Measures one case: builds every peer, compares their outputs, then times them in turns."""

from __future__ import annotations

import datetime
import functools
import gc
import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from .figures import compare, quartiles
from .machine import others_s, peak_memory_gib, threads, versions
from .peers import PEERS, Run, Setup, as_array

# Threads of other peers may spin for a moment after their work. Nothing is timed meanwhile.
_PAUSE_S = 0.1
# A round counts if other processes took less than this fraction of the processors.
_QUIET_FRACTION = 0.05
# Three rounds suffice if a round takes longer than this; otherwise at least seven are measured.
_LONG_ROUND_S = 15


def checkpoint_of(size: str, folder: Path) -> Path:
    """Return a checkpoint with random weights in Transformers' layout, made once."""
    checkpoint = folder / size
    if not (checkpoint / "model.safetensors").exists():
        subprocess.run([sys.executable, "-m", "dajax.weights.random", size, checkpoint], check=True)
    return checkpoint


def make_setup(size: str, image_size: tuple[int, int], batch: int, platform: str, folder: Path) -> Setup:
    """Return the setup of a case: a checkpoint with random weights, made once, and the bundled image's pixels."""
    from PIL import Image

    import dajax

    image = Image.open(Path(dajax.__file__).parent / "assets" / "scene.jpg").resize(image_size[::-1])
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=92)
    processor = dajax.DepthImageProcessor()
    pixels = (np.asarray(image) / 255 - processor.image_mean) / processor.image_std
    # All images of a batch differ.
    pixels = np.stack([np.roll(pixels, 37 * i, 1) for i in range(batch)]).astype(np.float32)
    return Setup(checkpoint_of(size, folder), pixels, jpeg.getvalue(), platform)


def measure(setup: Setup, names: list[str], rounds: int, budget_s: float) -> dict[str, Any]:
    """Return rows of figures for the named peers.

    Args:
        setup: checkpoint and images that all peers get.
        names: keys of `PEERS`. The others are compared with the first one.
        rounds: most rounds that are measured.
        budget_s: seconds after which no further round begins, if enough rounds were quiet. After twice this time none
            begins in any case.
    """
    rows: list[dict[str, Any]] = []
    runs: list[tuple[dict[str, Any], Run]] = []
    reference = None
    for name in names:
        peer = PEERS[name]
        row: dict[str, Any] = {"peer": name, "title": peer.title, "dtype": peer.dtype}
        rows.append(row)
        row["left_out"] = reason = peer.lacking(setup)
        if reason is None:
            try:
                run = peer.build(setup, peer.dtype)
                begin = time.perf_counter()
                output = run()
                row["first_call_s"] = round(time.perf_counter() - begin, 3)
                depth = as_array(output)
                if reference is None:
                    reference = depth
                row["error"] = compare(depth, reference, peer.dtype)
                runs.append((row, run))
            except Exception as error:  # from any library: its reason is stored, and the others are measured
                if name.startswith("dajax"):
                    raise
                row["left_out"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
        print(f"  {name}: {row['left_out'] or row['error']}", flush=True)

    matmuls = [_matmul(dtype, setup.platform) for dtype in ("float32", "bfloat16")]
    everything = [*runs, *matmuls]
    for _, run in everything * (3 if setup.platform == "gpu" else 1):
        run()
    quiet, disturbed = _rounds([run for _, run in everything], rounds, budget_s)
    # If too few rounds were quiet, the disturbed ones are shown, and not stored.
    kept = quiet if len(quiet) >= 3 else quiet + disturbed
    for (row, _), series in zip(everything, zip(*kept, strict=True), strict=True):
        row["times_s"] = [float(f"{seconds:.5g}") for seconds in series]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions(),
        "matmul_flops": {
            row["dtype"]: float(f"{row['flop'] / quartiles(row['times_s'])[1]:.4g}") for row, _ in matmuls
        },
        "disturbed": {"kept": len(kept) - len(quiet), "thrown_away": len(quiet) + len(disturbed) - len(kept)},
        "rows": rows,
    }


def _rounds(runs: list[Run], rounds: int, budget_s: float) -> tuple[list[list[float]], list[list[float]]]:
    """Time all runs in turns; return the quiet rounds and those that other processes disturbed."""
    quiet: list[list[float]] = []
    disturbed: list[list[float]] = []
    begin = time.perf_counter()
    while len(quiet) < rounds:
        elapsed, done = time.perf_counter() - begin, len(quiet) + len(disturbed)
        least = 3 if elapsed > _LONG_ROUND_S * done else 7
        if elapsed > budget_s and (len(quiet) >= least or (elapsed > 2 * budget_s and done >= least)):
            break
        times = []
        others, start_of_round = others_s(), time.perf_counter()
        for run in runs:
            gc.collect()
            time.sleep(_PAUSE_S)
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        fraction = (others_s() - others) / (time.perf_counter() - start_of_round) / threads()
        (quiet if fraction < _QUIET_FRACTION else disturbed).append(times)
    return quiet, disturbed


def _matmul(dtype: str, platform: str) -> tuple[dict[str, Any], Run]:
    """Return a product of two square matrices, which shows the rate that the machine reaches at best."""
    import jax
    import jax.numpy as jnp

    n = 2048 if platform == "cpu" else 8192
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((n, n)), dtype)
    # On CPUs, XLA multiplies bfloat16 faster if the result is float32.
    dot = jax.jit(functools.partial(jnp.dot, preferred_element_type=jnp.float32))
    repeats = 10

    def run() -> None:
        for _ in range(repeats):
            product = dot(matrix, matrix)
        product.block_until_ready()

    return {"dtype": dtype, "flop": 2 * n**3 * repeats}, run


def network_flop(setup: Setup) -> float:
    """Return the number of operations of dajax's network for a batch, as XLA counts them."""
    import jax

    import dajax

    model = dajax.DepthAnything(dajax.DepthAnythingConfig.from_pretrained(setup.checkpoint))
    pixels = jax.ShapeDtypeStruct((1, *setup.pixels.shape[1:]), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), pixels)

    # XLA counts the body of a loop once, so there must be no loop: the plain formulas have none.
    def apply(params: Any, pixels: Any) -> Any:
        return model.apply(params, pixels).predicted_depth

    with dajax.kernels.target(kernels="reference"):
        flop = jax.jit(apply).lower(params, pixels).cost_analysis()["flops"]
    return float(flop) * len(setup.pixels)


def memory_of(name: str, arguments: list[str]) -> float:
    """Return the peak memory, in GiB, of a process that runs one peer only."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "--peers", name, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_alone(name: str, setup: Setup) -> None:
    """Run one peer twice and print its peak memory in GiB: on a GPU, that of the device."""
    run = PEERS[name].build(setup, PEERS[name].dtype)
    run()
    run()
    peak = peak_memory_gib()
    if setup.platform == "gpu" and "torch" in PEERS[name].modules:
        import torch

        peak = torch.cuda.max_memory_allocated() / 2**30
    elif setup.platform == "gpu":
        import jax

        peak = jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 2**30
    print(json.dumps(round(peak, 2)))
