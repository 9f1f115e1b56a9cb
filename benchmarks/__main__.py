"""`python -m benchmarks`: measure dajax beside other implementations, and add the figures to a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import warnings
from pathlib import Path
from typing import Any

# jax shares a GPU with its peers.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from .figures import merge
from .machine import describe
from .measure import make_setup, measure, memory_of, network_flop, run_alone
from .peers import PEERS
from .report import summary

# `make bench` measures these cases: (kind, size, image, batch, peers). The most important come first.
_FASTEST = "dajax,transformers,onnxruntime,openvino-f32"
DEFAULT_SET = {
    "cpu": (
        ("model", "small", "518x518", 1, "all"),
        ("model", "base", "518x518", 1, "dajax,transformers,openvino-f32"),
        ("model", "large", "518x518", 1, "dajax,transformers,openvino-f32"),
        ("model", "small", "518x686", 1, "all"),
        ("model", "small", "518x518", 8, _FASTEST),
        ("jpeg", "small", "960x1280", 1, "all"),
    ),
    "gpu": tuple(
        ("model", size, image, batch, "all")
        for size in ("small", "base", "large")
        for image in ("518x518", "518x686")
        for batch in (1, 8, 32)
    ),
}


def _read_options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--size", choices=("small", "base", "large"), help="measure one case; without it: the default set"
    )
    parser.add_argument("--image", default="518x518", help="height x width of the network's input, or of the JPEG")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--jpeg", action="store_true", help="measure from an encoded image to a depth map of its size")
    parser.add_argument("--peers", default="all", help=f"all, or some of {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=15, help="most rounds of a case")
    parser.add_argument("--budget", type=float, default=90, help="seconds of rounds for each case")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory, in one process a peer")
    parser.add_argument("--out", type=Path, help="add the figures to this JSON file")
    parser.add_argument("--folder", type=Path, default=Path("build/benchmarks"), help="of checkpoints and exports")
    parser.add_argument("--alone", metavar="PLATFORM", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the cases that the arguments name, or the default set."""
    options = _read_options(argv)
    warnings.simplefilter("ignore")

    if options.size:
        kind = "jpeg" if options.jpeg else "model"
        cases: Any = [(kind, options.size, options.image, options.batch, options.peers)]
    if options.alone:  # before jax is imported, whose memory would count as the peer's
        setup = make_setup(options.size, _sides(options.image), options.batch, options.alone, options.folder)
        return run_alone(options.peers, setup)

    import jax

    platform = jax.default_backend()
    out = options.out or Path(f"docs/performance/{platform}.json")
    if not options.size:
        cases = DEFAULT_SET[platform]
    for kind, size, image, batch, peers in cases:
        names = _chosen(peers, kind, platform)
        print(f"{size} {image}, batch {batch}, {kind}", flush=True)
        setup = make_setup(size, _sides(image), batch, platform, options.folder)
        case = {"kind": kind, "size": size, "image": image, "batch": batch}
        if kind == "model":
            case["flop"] = network_flop(setup)
        case |= measure(setup, names, options.rounds, options.budget)
        if options.memory:
            arguments = [
                "--alone",
                platform,
                "--size",
                size,
                "--image",
                image,
                "--batch",
                str(batch),
                "--folder",
                str(options.folder),
            ]
            for row in case["rows"]:
                if not row["left_out"]:
                    row["memory_gib"] = memory_of(row["peer"], arguments)
        print(summary(case), flush=True)
        if case["disturbed"]["kept"]:
            print("NOT STORED: other processes took processor time in most rounds; repeat this on a quiet machine")
            continue
        results = json.loads(out.read_text()) if out.exists() else None
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(merge(results, describe(jax.devices()[0]), case), indent=1) + "\n")


def _sides(image: str) -> tuple[int, int]:
    height, width = image.split("x")
    return int(height), int(width)


def _chosen(peers: str, kind: str, platform: str) -> list[str]:
    """Return the names of the peers. The others are compared with the first one."""
    of_kind = [name for name, peer in PEERS.items() if peer.kind == kind and platform in peer.platforms]
    if peers == "all":
        return of_kind
    unknown = set(peers.split(",")) - set(of_kind)
    if unknown:
        raise SystemExit(f"no such peers for {kind} on {platform}: {sorted(unknown)}; there are {of_kind}")
    chosen = [name for name in of_kind if name in peers.split(",")]
    if chosen[0] != of_kind[0]:
        raise SystemExit(f"the peers are compared with {of_kind[0]}: name it as well")
    return chosen


if __name__ == "__main__":
    main()
