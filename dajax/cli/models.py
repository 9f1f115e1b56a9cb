"""`dajax models`."""

from __future__ import annotations


def models() -> int:
    """List the released checkpoints: alias, kind, parameters, licence of the weights, Hub id.

    Example: dajax models

    An alias is what --model takes. The weights come from the Hub when they are first used; tiny is part of dajax.

    Exit status: 0.
    """
    from dajax.checkpoints import list_models

    rows = [("ALIAS", "KIND", "PARAMETERS", "LICENCE", "HUB ID")]
    for m in list_models():
        rows.append((m.alias, m.kind, f"{m.parameters / 1e6:.1f} M", m.licence, m.hub_id or "(in dajax itself)"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
