"""A plan as a table for people: equal rows of repeated blocks are one row."""

from __future__ import annotations

import re
from collections.abc import Sequence

from normgeo.geometry import Leaf
from normgeo.linalg import PolarExpress
from normgeo.norms import with_polar

__all__ = ["table"]

HEAD = ("leaf", "role", "norm", "shape", "mass", "x", "μ", "radius", "known", "")
RIGHT = {4, 5, 6, 7}


def table(leaves: Sequence[Leaf], markdown: bool = False) -> str:
    """One line per leaf; leaves that differ only in the numbers of their name share a line, with how many they are."""
    seen: dict[tuple[str, ...], list[Leaf]] = {}
    for leaf in leaves:
        seen.setdefault(_cells(leaf), []).append(leaf)
    rows: list[tuple[str, ...]] = [HEAD]
    for cells, group in seen.items():
        rows.append((cells[0] if len(group) > 1 else group[0].name, *cells[1:-1], _note(group)))
    if markdown:
        rule = ["---:" if i in RIGHT else "---" for i in range(len(HEAD))]
        return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = [
        "  ".join(c.rjust(w) if i in RIGHT else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cells(leaf: Leaf) -> tuple[str, ...]:
    numbers = (leaf.mass, leaf.input_norm, leaf.sensitivity, leaf.radius)
    norm = re.sub(r"(, )?polar=PolarExpress\([^()]*\)", "", str(with_polar(leaf.norm, PolarExpress())))
    shape = "×".join(map(str, leaf.shape))
    name = re.sub(r"(?<=\.)\d+(?=\.)", "*", leaf.name)
    known = f"{leaf.source}, {leaf.known}"
    return (name, leaf.role, norm.replace("()", ""), shape, *(f"{n:.4g}" for n in numbers), known, _why(leaf))


def _why(leaf: Leaf) -> str:
    view = f"view {leaf.view}" if leaf.view else ""
    return ", ".join(filter(None, [view, "" if leaf.trainable else "frozen"]))


def _note(group: list[Leaf]) -> str:
    return ", ".join(filter(None, [f"{len(group)} leaves" if len(group) > 1 else "", _why(group[0])]))
