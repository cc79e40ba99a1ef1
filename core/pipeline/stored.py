"""The contents of a store as a table."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from retinakit.pipeline.store import Entry

if TYPE_CHECKING:
    from rich.table import Table

UNITS = ((86400, "days"), (3600, "hours"), (60, "minutes"))


def listing(entries: Iterable[Entry]) -> "Table":
    """A row for each step of each pipeline, most recently used first, and a total."""
    from rich.table import Table

    by_step: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        by_step.setdefault((entry.pipeline, entry.step, entry.plugin), []).append(entry)
    table = Table("pipeline", "step", "plugin", box=None)
    for name in ("results", "size", "made", "last used"):
        table.add_column(name, justify="right")
    ordered = sorted(by_step.items(), key=lambda item: -max(e.used for e in item[1]))
    for names, found in ordered:
        size = sum(entry.size for entry in found)
        made, used = (max(getattr(e, name) for e in found) for name in ("made", "used"))
        table.add_row(*names, str(len(found)), _megabytes(size), _ago(made), _ago(used))
    everything = [entry for found in by_step.values() for entry in found]
    table.add_row("all", "", "", str(len(everything)), _megabytes(sum(e.size for e in everything)))
    return table


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _ago(when: float) -> str:
    passed = max(0.0, time.time() - when)
    for seconds, name in UNITS:
        if passed >= 2 * seconds:
            return f"{passed / seconds:.0f} {name} ago"
    return "now"
