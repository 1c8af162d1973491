"""Overrides by pattern: every pattern must match something, and no two may disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from normgeo.plan.names import some

__all__ = ["matches", "overrides"]

V = TypeVar("V")


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a leaf or a module above it; * and ? as in file names.

    >>> matches("blocks.0.mlp.up.weight", "blocks.*.mlp"), matches("head.weight", "blocks.*")
    (True, False)
    """
    return name == pattern or fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def overrides(option: str, given: Mapping[str, V] | None, names: Sequence[str]) -> dict[str, V]:
    """name -> value for the names that a pattern matches.

    >>> overrides("masses", {"*.up": 2.0}, ["mlp.up.weight", "mlp.down.weight"])
    {'mlp.up.weight': 2.0}
    """
    out: dict[str, V] = {}
    source: dict[str, str] = {}
    for pattern, value in (given or {}).items():
        hits = [name for name in names if matches(name, pattern)]
        if not hits:
            raise ValueError(f"{option}: the pattern {pattern!r} matches no leaf; leaves are {some(names, 8)}")
        for name in hits:
            if name in out and out[name] != value:
                raise ValueError(
                    f"{option}: {source[name]!r} and {pattern!r} both match {name} and disagree "
                    f"({out[name]} and {value}); make the patterns disjoint"
                )
            out[name], source[name] = value, pattern
    return out
