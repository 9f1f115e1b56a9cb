"""`python -m benchmarks.report`: writes the tables and plots of docs/performance.md from the stored figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from . import precision, start
from .compiled import tables as compiled
from .figures import paired_ratio, quartiles

PAGE = Path("docs/performance.md")
_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "default": "its own"}


def ratio_to_dajax(row: dict[str, Any], case: dict[str, Any]) -> float | None:
    """Return dajax's time over this row's, or None for dajax itself and where dajax has no row of this type.

    On a CPU that has instructions for bfloat16, a peer that chooses its own type takes bfloat16.
    """
    dtype = "bfloat16" if row["dtype"] == "default" else row["dtype"]
    ours = [other for other in case["rows"] if other["title"].startswith("dajax") and other["dtype"] == dtype]
    if row in ours or not ours or ours[0]["left_out"]:
        return None
    return paired_ratio(ours[0]["times_s"], row["times_s"])


def summary(case: dict[str, Any]) -> str:
    """Return the table of one case, in Markdown."""
    memory = any("memory_gib" in row for row in case["rows"])
    header = ["", "type", "median s (quartiles)", "images/s", "dajax's time / its", "fraction of peak", "first call s"]
    header += ["memory GiB"] * memory + ["max. error"]
    lines = [header, ["---"] * len(header)]
    left_out = []
    for row in case["rows"]:
        if row["left_out"]:
            left_out.append(f"{row['title']} ({_TYPES[row['dtype']]}): {row['left_out']}")
            continue
        low, median, high = quartiles(row["times_s"])
        ratio = ratio_to_dajax(row, case)
        peak = case["matmul_flops"].get(row["dtype"])
        cells = [row["title"], _TYPES[row["dtype"]], f"{median:.3f} ({low:.3f} to {high:.3f})"]
        cells += [f"{case['batch'] / median:.2f}", f"{ratio:.2f}" if ratio else ""]
        cells.append(f"{case['flop'] / median / peak:.0%}" if peak and "flop" in case else "")
        cells.append(f"{row['first_call_s']:.1f}")
        if memory:
            cells.append(f"{row['memory_gib']:.1f}" if "memory_gib" in row else "")
        lines.append([*cells, "reference" if row is case["rows"][0] else f"{row['error']['max']:.1e}"])
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return text + "".join(f"\n\nLeft out: {reason}." for reason in left_out)


def render(results: dict[str, Any]) -> str:
    """Return the text between the markers of the page for one platform."""
    machine = results["machine"]
    name = machine.get("device", machine["processor"])
    parts = [f"Machine: {name}; {machine['threads']} threads, {machine['memory_gib']} GiB, {machine['system']}."]
    for case in results["cases"]:
        if case["kind"] == "model":
            title = f"{case['image']}, batch {case['batch']}"
        else:
            title = f"from the bytes of a JPEG of {case['image']} to a depth array of that size"
        rounds = max(len(row.get("times_s", ())) for row in case["rows"])
        peaks = " and ".join(f"{flops / 1e9:.0f} ({_TYPES[dtype]})" for dtype, flops in case["matmul_flops"].items())
        away = case["disturbed"]["thrown_away"]
        disturbed = f" ({away} more thrown away: other processes ran)" if away else ""
        work = f" The network: {case['flop'] / 1e9:.0f} GFLOP." if "flop" in case else ""
        installed = ", ".join(f"{package} {version}" for package, version in case["versions"].items())
        parts.append(f"### {case['size'].capitalize()}, {title}")
        parts.append(
            f"{case['date']}, {rounds} rounds{disturbed}.{work} Matrix products: {peaks} GFLOP/s. {installed}."
        )
        if "note" in case:
            parts.append(case["note"])
        parts.append(summary(case))
    return "\n\n".join(parts)


def insert(page: str, name: str, text: str) -> str:
    """Return the page with the text between `<!-- name:begin -->` and `<!-- name:end -->`.

    Raises:
        ValueError: the page has no such markers, or more than one pair.
    """
    pattern = re.compile(f"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.S)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"the page must have the markers <!-- {name}:begin --> and <!-- {name}:end --> once")
    return pattern.sub(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", page)


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw medians and quartiles, one panel for each case of the network alone."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "dajax"  # so that the same figures give the same file
    import matplotlib.pyplot as plt

    cases = [case for case in results["cases"] if case["kind"] == "model"]
    columns = min(len(cases), 2)
    rows = -(-len(cases) // columns)
    size = (5.5 * columns, 0.6 + 2.6 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(cases) :]:
        axis.remove()
    for axis, case in zip(axes.flat, cases, strict=False):
        measured = sorted(
            (row for row in case["rows"] if not row["left_out"]), key=lambda row: -quartiles(row["times_s"])[1]
        )
        for place, row in enumerate(measured):
            low, median, high = quartiles(row["times_s"])
            colour = "#c2410c" if row["title"].startswith("dajax") else "#94a3b8"
            axis.barh(place, median, color=colour, xerr=[[median - low], [high - median]], ecolor="#334155")
            axis.annotate(f"{median:.2f}", (high, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axis.set_yticks(
            range(len(measured)), [f"{row['title']}, {_TYPES[row['dtype']]}" for row in measured], fontsize=8
        )
        axis.set_title(f"{case['size'].capitalize()}, {case['image']}, batch {case['batch']}", fontsize=10)
        axis.set_xlabel("seconds a batch, median and quartiles: less is better", fontsize=8)
        axis.margins(x=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def main() -> None:
    """Write the page and the plots."""
    page = PAGE.read_text()
    for platform in ("cpu", "gpu"):
        stored = PAGE.parent / "performance" / f"{platform}.json"
        if not stored.exists():
            page = insert(page, platform, "Not yet measured.")
            continue
        results = json.loads(stored.read_text())
        plot(results, stored.with_suffix(".svg"))
        image = f"![Times of dajax and its peers](performance/{platform}.svg)"
        page = insert(page, platform, f"{image}\n\n{render(results)}")
    tables = {
        "precision": precision.table,
        "precision_tpu": precision.table,
        "start": start.table,
        "compiled": compiled.render,
    }
    for name, of_file in tables.items():
        stored = PAGE.parent / "performance" / f"{name}.json"
        if stored.exists():
            page = insert(page, name, of_file(json.loads(stored.read_text())))
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
