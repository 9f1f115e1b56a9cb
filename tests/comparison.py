"""The tables of docs/comparison.md."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLUMNS = ["", "dajax", "Transformers", "keras-hub", "authors' code"]


def tables(page: str) -> list[list[list[str]]]:
    """All tables of a page: lists of rows, the header first."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", (ROOT / page).read_text(), re.MULTILINE):
        lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        found.append([lines[0], *lines[2:]])
    return found


def compared(page: str = "docs/comparison.md") -> dict[str, list[str]]:
    """The rows that compare: {row: cells of dajax, Transformers, keras-hub and the authors' code}."""
    return {row[0]: row[1:] for table in tables(page) if table[0] == COLUMNS for row in table[1:]}


class Checks(dict):
    """{row: (cell, check)}: what a column says, and a function that shows it."""

    def says(self, row: str, cell: str):
        """Register a check; it gets what the tests provide."""

        def register(check):
            assert row not in self, f"{row} is checked twice"
            self[row] = (cell, check)
            return check

        return register
