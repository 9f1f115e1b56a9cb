"""The stored figures as tables in Markdown."""

from __future__ import annotations

from typing import Any

from .targets import CHIPS

_SIZES, _PEERS = ("small", "base", "large"), ("dajax", "keras-hub")


def derived(case: dict[str, Any]) -> dict[str, float]:
    """Return a case's figures for one image: millions of cycles, gigabytes, milliseconds and shares."""
    chip, batch, total = CHIPS[case["target"]], case["batch"], case["total"]
    cycles, charged, flop = (count / batch for count in (total["cycles"], total["charged"], case["flop"]))
    padded = (total["padded_bytes"] + total["charged_padded_bytes"]) / batch
    return {
        "cycles": cycles / 1e6,
        "charged": charged / 1e6,
        "both": (cycles + charged) / 1e6,
        "arithmetic": chip.cycles_of_flop(flop) / 1e6,
        "share": chip.cycles_of_flop(flop) / (cycles + charged),
        "ms": chip.seconds(cycles + charged) * 1e3,
        "gb": total["bytes"] / batch / 1e9,
        "charged_gb": total["charged_bytes"] / batch / 1e9,
        "both_gb": (total["bytes"] + total["charged_bytes"]) / batch / 1e9,
        "padded_gb": padded / 1e9,
        "byte_cycles": chip.cycles_of_bytes(padded) / 1e6,
        "gflop": flop / 1e9,
        "elementwise": total["elementwise"] / batch / 4 / chip.vector_rate / 1e6,
    }


def merge(results: dict[str, Any] | None, case: dict[str, Any]) -> dict[str, Any]:
    """Return the stored cases with one added, which replaces an earlier compilation of the same program."""

    def key(other: dict[str, Any]) -> tuple[Any, ...]:
        place = (list(CHIPS).index(other["target"]), _SIZES.index(other["size"]), _PEERS.index(other["peer"]))
        return (*place, other["dtype"], other["image"], other["batch"], other["part"])

    kept = [other for other in (results or {"cases": []})["cases"] if key(other) != key(case)]
    return {"cases": sorted([*kept, case], key=key)}


def render(results: dict[str, Any]) -> str:
    """Return the section of the page: all cases in total, by part and by kind, and the chips' table."""
    cases = results["cases"]
    compilers = dict.fromkeys(
        f"libtpu {case['versions']['libtpu']} and jax {case['versions']['jax']}" for case in cases
    )
    return "\n\n".join(
        [
            f"Compiled by {'; '.join(compilers)}, and not run. All figures are for one image.",
            _totals(cases),
            *(
                _columns(cases, table, figure)
                for table, figure in (("parts", "M cycles"), ("kinds", "M cycles"), ("parts", "GB"))
            ),
            _chips(),
        ]
    )


def _totals(cases: list[dict[str, Any]]) -> str:
    lines = [
        "|  | compiled in s | temporary GiB a batch | GFLOP | M cycles: estimated + charged | share of peak | ms | "
        "GB | GB, padded |",
        "| --- " * 9 + "|",
    ]
    for case in cases:
        of = derived(case)
        lines.append(
            f"| {title(case)} | {case['compile_s']:.0f} | {case['temporary_bytes'] / 2**30:.2f} | {of['gflop']:.0f} | "
            f"{of['cycles']:.2f} + {of['charged']:.2f} = {of['both']:.2f} | {of['share']:.0%} | {of['ms']:.2f} | "
            f"{of['both_gb']:.2f} | {of['padded_gb']:.2f} |"
        )
    return "\n".join(lines)


def _columns(cases: list[dict[str, Any]], table: str, figure: str) -> str:
    """Return the sums of every case by part or by kind, charges included."""
    names = dict.fromkeys(name for case in cases for name in case[table])
    of = _cycles if figure == "M cycles" else _gb
    lines = [f"| {figure} | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    for case in cases:
        cells = (f"{of(case[table].get(name), case):.2f}" for name in names)
        lines.append(f"| {title(case)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _chips() -> str:
    lines = [
        "| chip | TFLOP/s, bfloat16 | TB/s | memory GB | matrix unit | cycles a second | numbers a cycle of the vector "
        "unit | source |",
        "| --- " * 8 + "|",
    ]
    for name, chip in CHIPS.items():
        lines.append(
            f"| {name} | {chip.peak_flops / 1e12:.0f} | {chip.bandwidth / 1e12:.2f} | {chip.memory / 1e9:.0f} | "
            f"{chip.matrix_unit}x{chip.matrix_unit} | {chip.clock_hz / 1e9:.2f} G | {chip.vector_rate} | "
            f"[Google Cloud]({chip.source}) |"
        )
    return "\n".join(lines)


def title(case: dict[str, Any]) -> str:
    """Return what was compiled for what."""
    part = "" if case["part"] == "all" else f", {case['part']} alone"
    return (
        f"{case['peer']}: {case['size'].capitalize()}{part}, {case['dtype']}, {case['image']}, batch {case['batch']}, "
        f"for {case['target']}"
    )


def summary(case: dict[str, Any], most: int = 20) -> str:
    """Return everything that was read of one program."""
    figures, batch = derived(case), case["batch"]
    lines = [
        f"### {title(case)}",
        "",
        f"Compiled in {case['compile_s']} s (traced and lowered in {case['trace_s']} s); not run. "
        f"Temporary memory {case['temporary_bytes'] / 2**30:.2f} GiB, "
        f"arguments {case['argument_bytes'] / 2**30:.2f} GiB, program {case['program_bytes'] / 2**20:.0f} MiB.",
        "",
        "| an image | estimated by the compiler | charged | both |",
        "| --- | --- | --- | --- |",
        f"| cycles, million | {figures['cycles']:.3f} | {figures['charged']:.3f} | {figures['both']:.3f} |",
        f"| device memory, GB | {figures['gb']:.3f} | {figures['charged_gb']:.3f} | {figures['both_gb']:.3f} |",
        "",
        f"Arithmetic: {figures['gflop']:.1f} GFLOP, {figures['arithmetic']:.3f} M cycles at the peak: share of peak "
        f"{figures['share']:.1%}. Estimated time {figures['ms']:.2f} ms. With arrays padded to tiles "
        f"{figures['padded_gb']:.3f} GB, which alone take {figures['byte_cycles']:.3f} M cycles. "
        f"Not charged: other elementwise operations within Pallas kernels, {figures['elementwise']:.3f} M cycles if "
        "the vector unit does four at a time.",
    ]
    for name, rows in (("part", case["parts"]), ("kind", case["kinds"])):
        lines += ["", f"| {name} | kernels | M cycles | of them charged | GB |", "| --- | --- | --- | --- | --- |"]
        lines += [
            f"| {key} | {row['count']} | {(row['cycles'] + row['charged']) / batch / 1e6:.3f} | "
            f"{row['charged'] / batch / 1e6:.3f} | {(row['bytes'] + row['charged_bytes']) / batch / 1e9:.3f} |"
            for key, row in rows.items()
        ]
    lines += ["", "| M cycles | GB | times | part | kind | shape | operation |", "| --- " * 7 + "|"]
    lines += [
        f"| {(row['cycles'] + row['charged']) / batch / 1e6:.3f} | "
        f"{(row['bytes'] + row['charged_bytes']) / batch / 1e9:.3f} | {row['count']} | {row['part']} | {row['kind']} | "
        f"{row['shape']} | {short(row['op'])} ({row['name']}) |"
        for row in case["kernels"][:most]
    ]
    for name, told in (("unknown_loops", "Loops of unknown length, counted once"), ("uncharged", "Not charged")):
        if case[name]:
            lines += ["", f"{told}: {', '.join(case[name])}."]
    return "\n".join(lines)


def short(op: str) -> str:
    """Return the end of a path of scopes."""
    return "/".join(op.replace("|", "\\|").split("/")[-3:])


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return what changed from one case to another, for one image: in total, by part, and by part and kind."""
    lines = [f"{title(old)} -> {title(new)}", "", "|  | M cycles | | change | GB | | change |", "| --- " * 7 + "|"]
    rows = [("total", old["total"], new["total"])]
    for table in ("parts", "kinds", "parts_and_kinds"):
        names = dict.fromkeys([*old[table], *new[table]])
        changed = [(name, old[table].get(name), new[table].get(name)) for name in names]
        rows += sorted(changed, key=lambda row: abs(_cycles(row[2], new) - _cycles(row[1], old)), reverse=True)
    for name, before, after in rows:
        values = [_cycles(before, old), _cycles(after, new), _gb(before, old), _gb(after, new)]
        a, b, c, d = (round(value, 3) for value in values)
        if name == "total" or a != b or c != d:
            lines.append(f"| {name} | {a:.3f} | {b:.3f} | {b - a:+.3f} | {c:.3f} | {d:.3f} | {d - c:+.3f} |")
    before, after = (_by_operation(case) for case in (old, new))
    changes = {key: after.get(key, 0.0) - before.get(key, 0.0) for key in {**before, **after}}
    lines += ["", "| change, M cycles | before | after | kernel |", "| --- " * 4 + "|"]
    for key, change in sorted(changes.items(), key=lambda item: -abs(item[1]))[:20]:
        if abs(change) >= 5e-4:
            told = f"{before.get(key, 0.0):.3f} | {after.get(key, 0.0):.3f}"
            lines.append(f"| {change:+.3f} | {told} | {', '.join(key[:2])}: {short(key[2])} |")
    seconds = [case["compile_s"] for case in (old, new)]
    memory = [case["temporary_bytes"] / 2**30 for case in (old, new)]
    lines += ["", f"Compiled in {seconds[0]} -> {seconds[1]} s; temporary {memory[0]:.2f} -> {memory[1]:.2f} GiB."]
    return "\n".join(lines)


def _cycles(row: dict[str, Any] | None, case: dict[str, Any]) -> float:
    return (row["cycles"] + row["charged"]) / case["batch"] / 1e6 if row else 0.0


def _gb(row: dict[str, Any] | None, case: dict[str, Any]) -> float:
    return (row["bytes"] + row["charged_bytes"]) / case["batch"] / 1e9 if row else 0.0


def _by_operation(case: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    found: dict[tuple[str, str, str], float] = {}
    for row in case["kernels"]:
        key = (row["part"], row["kind"], row["op"])
        found[key] = found.get(key, 0.0) + _cycles(row, case)
    return found
