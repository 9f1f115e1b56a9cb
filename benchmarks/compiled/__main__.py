"""`python -m benchmarks.compiled`: compile the network for a TPU and say what its kernels cost. Nothing runs.

`python -m benchmarks.compiled diff A.json B.json` shows what changed from one program to another, and
`python -m benchmarks.compiled all` compiles what docs/performance.md shows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report import PAGE, insert

from .tables import difference, merge, render, summary
from .targets import CHIPS

STORED = PAGE.parent / "performance" / "compiled.json"
KERNELS_STORED = 12
# The programs of the page, (target, size): bfloat16, batch 8, images of 518x518.
DEFAULT_SET = {
    "dajax": (
        ("v5e", "small"), ("v5e", "base"), ("v5e", "large"), ("v6e", "small"), ("v6e", "base"), ("v6e", "large"),
        ("v5p", "small"), ("v4", "small"),
    ),
    "keras-hub": (("v5e", "small"), ("v6e", "small")),
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Compile one program, or compare two."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["diff"]:
        parser = argparse.ArgumentParser("python -m benchmarks.compiled diff")
        parser.add_argument("files", nargs=2, type=Path, metavar="JSON", help="files that --json wrote")
        old, new = (json.loads(path.read_text()) for path in parser.parse_args(argv[1:]).files)
        print(difference(old, new))
        return
    if argv[:1] == ["all"]:
        return compile_all(argv[1:])
    options = _options(argv)
    case, text = compile_case(
        options.target, options.size, options.dtype, options.batch, options.image, options.part, options.peer
    )
    print(summary(case, options.kernels))
    for path, written in ((options.hlo, text), (options.json, json.dumps(case, indent=1) + "\n")):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(written)


def compile_all(argv: list[str]) -> None:
    """Compile the cases of docs/performance.md, each in a process of its own, and write the page."""
    parser = argparse.ArgumentParser("python -m benchmarks.compiled all")
    parser.add_argument("--peer", choices=tuple(DEFAULT_SET), default="dajax")
    parser.add_argument("--out", type=Path, default=STORED, help="add the figures to this JSON file")
    options = parser.parse_args(argv)
    for target, size in DEFAULT_SET[options.peer]:
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder, "case.json")
            arguments = ["--target", target, "--size", size, "--peer", options.peer, "--json", written]
            subprocess.run([sys.executable, "-m", "benchmarks.compiled", *arguments], check=True)
            case = json.loads(written.read_text())
        del case["parts_and_kinds"], case["kernels"][KERNELS_STORED:]
        results = merge(json.loads(options.out.read_text()) if options.out.exists() else None, case)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    if options.out == STORED:
        PAGE.write_text(insert(PAGE.read_text(), "compiled", render(results)))


def compile_case(
    target: str, size: str, dtype: str, batch: int, image: str, part: str, peer: str
) -> tuple[dict[str, Any], str]:
    """Compile one program; return its figures, as JSON has them, and its text."""
    from . import compiling, programs

    compiling.check()
    height, width = (int(side) for side in image.split("x"))
    if peer == "keras-hub":
        program = programs.keras_hub_program(size, dtype, batch, (height, width))
    else:
        program = programs.dajax_program(size, dtype, batch, (height, width), part)
    case = {
        "target": target, "peer": peer, "size": size, "dtype": dtype, "batch": batch, "image": image, "part": part,
    }  # fmt: skip
    figures, text = compiling.compiled(program, target)
    return case | figures, text


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.compiled", description=__doc__)
    parser.add_argument("--target", choices=tuple(CHIPS), default="v5e", help="the TPU to compile for")
    parser.add_argument("--size", choices=("small", "base", "large"), default="small")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image", default="518x518", help="height x width of the images")
    parser.add_argument(
        "--part",
        choices=("all", "embeddings", "layer", "attention", "mlp", "encoder", "neck", "head"),
        default="all",
        help="compile one module of the network alone; layer is the encoder's first",
    )
    parser.add_argument("--peer", choices=("dajax", "keras-hub"), default="dajax", help="whose network")
    parser.add_argument("--kernels", type=int, default=20, help="how many of the dearest kernels are printed")
    parser.add_argument("--hlo", type=Path, help="write the text of the compiled program to this file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(argv)
    if options.peer == "keras-hub" and options.part != "all":
        parser.error("--part is for dajax: keras-hub's network is compiled as a whole")
    return options


if __name__ == "__main__":
    main()
