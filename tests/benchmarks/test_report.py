"""The page is what the stored figures give."""

import json
from pathlib import Path

import pytest

from benchmarks import precision, start
from benchmarks.report import insert, plot, ratio_to_dajax, render, summary

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def results():
    def row(peer, title, dtype, times_s, error):
        return {
            "peer": peer, "title": title, "dtype": dtype, "left_out": None, "first_call_s": 2.0,
            "error": {"max": error, "mean": error / 10}, "times_s": times_s,
        }  # fmt: skip

    rows = [
        row("dajax", "dajax", "float32", [1.0, 1.1, 0.9], 0.0),
        row("dajax-bf16", "dajax", "bfloat16", [0.5, 0.5, 0.5], 0.02),
        row("slow", "Slow", "float32", [2.0, 2.2, 1.8], 1e-5),
        row("openvino", "OpenVINO", "default", [0.25, 0.25, 0.25], 0.1),
        {"peer": "gone", "title": "Gone", "dtype": "float32", "left_out": "torch not installed"},
    ]
    case = {
        "kind": "model", "size": "small", "image": "518x518", "batch": 4, "flop": 5e11, "date": "2026-01-02",
        "versions": {"jax": "9.8"}, "matmul_flops": {"float32": 1e12, "bfloat16": 2e12}, "rows": rows,
        "disturbed": {"kept": 0, "thrown_away": 2},
    }  # fmt: skip
    machine = {"processor": "a processor", "threads": 2, "memory_gib": 8, "system": "Linux x86_64"}
    return {"machine": machine, "cases": [case]}


def test_rows_have_their_figures(results):
    lines = summary(results["cases"][0]).splitlines()
    assert lines[2] == "| dajax | f32 | 1.000 (0.950 to 1.050) | 4.00 |  | 50% | 2.0 | reference |"
    assert lines[4] == "| Slow | f32 | 2.000 (1.900 to 2.100) | 2.00 | 0.50 | 25% | 2.0 | 1.0e-05 |"
    assert lines[-1] == "Left out: Gone (f32): torch not installed."


def test_ratios_are_to_dajax_of_the_same_type(results):
    case = results["cases"][0]
    assert [ratio_to_dajax(row, case) for row in case["rows"][:4]] == [None, None, 0.5, 2.0]


def test_memory_has_a_column_where_it_was_measured(results):
    results["cases"][0]["rows"][2]["memory_gib"] = 1.23
    for row in results["cases"][0]["rows"][:4]:
        row.setdefault("memory_gib", 0.5)
    assert "| 2.0 | 1.2 | 1.0e-05 |" in summary(results["cases"][0])


def test_machine_date_and_versions_are_told(results):
    text = render(results)
    for told in (
        "a processor; 2 threads",
        "2026-01-02, 3 rounds (2 more thrown away",
        "500 GFLOP",
        "1000 (f32)",
        "jax 9.8",
    ):
        assert told in text


def test_text_goes_between_its_markers_any_number_of_times():
    page = "before\n<!-- cpu:begin -->\nold\n<!-- cpu:end -->\nafter\n"
    once = insert(page, "cpu", r"new \1")
    assert once == "before\n<!-- cpu:begin -->\n\nnew \\1\n\n<!-- cpu:end -->\nafter\n"
    assert insert(once, "cpu", r"new \1") == once
    with pytest.raises(ValueError, match="markers"):
        insert(page, "gpu", "new")


def test_the_plot_is_drawn_the_same_twice(results, tmp_path):
    for name in ("a.svg", "b.svg"):
        plot(results, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "Slow" in (tmp_path / "a.svg").read_text() or (tmp_path / "a.svg").stat().st_size > 1000


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_page_is_what_the_stored_figures_give(platform):
    page, stored = (DOCS / "performance.md").read_text(), DOCS / "performance" / f"{platform}.json"
    if stored.exists():
        assert render(json.loads(stored.read_text())) in page
        assert (DOCS / "performance" / f"{platform}.svg").exists()
    else:
        assert insert(page, platform, "Not yet measured.") == page


@pytest.mark.parametrize("of_file", [precision, start])
def test_the_other_tables_are_what_the_stored_figures_give(of_file):
    name = of_file.__name__.rpartition(".")[2]
    assert (
        of_file.table(json.loads((DOCS / "performance" / f"{name}.json").read_text()))
        in (DOCS / "performance.md").read_text()
    )


def test_the_table_of_errors():
    errors = {"mean": [0.001, 0.002], "max": [0.01, 0.02], "absrel": [0.004, 0.1]}
    errors |= {"mean_std": [0.1, 0.2], "max_std": [1, 2]}
    sizes = {
        "small": {"images": 7, "float16": errors, "float16_not_finite": 3, "random_inputs": 1000},
        "base": {"images": 5, "bfloat16": errors},
    }
    lines = precision.table({"sizes": sizes}).splitlines()
    assert lines[0].startswith("Means over 5 to 7 images")
    assert lines[0].endswith("in float16: Small: 3 of 1,000.")
    figures = "0.10% (0.20%) | 1.00% (2.00%) | 0.40% (10.00%) | 1.0e-01 (2.0e-01) | 1.0e+00 (2.0e+00)"
    assert lines[-2:] == [f"| Small | float16 | {figures} |", f"| Base | bfloat16 | {figures} |"]


def test_the_table_of_whole_processes():
    times = {"transformers": [4.0, 5.0, 6.0], "first": [2.0, 2.5, 3.0], "again": [1.0, 1.0, 1.0]}
    lines = start.table({"times_s": times}).splitlines()
    assert lines[2].endswith("| 5.00 (4.50 to 5.50) |  |")
    assert lines[3].endswith("| 2.50 (2.25 to 2.75) | 0.50 |")
    assert lines[4].endswith("| 1.00 (1.00 to 1.00) | 0.20 |")
