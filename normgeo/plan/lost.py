"""What to say of trainable parameters that the output does not depend on."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from torch.nn import Parameter

from normgeo.geometry import Node
from normgeo.geometry.reading import Reader
from normgeo.geometry.shares import reaching
from normgeo.plan.names import some
from normgeo.plan.patterns import matches

__all__ = ["lost_message", "patterns_of"]


def lost_message(reader: Reader, lost: Sequence[str], parameters: Mapping[str, Parameter]) -> str:
    """Which they are, why, and the lines that help."""
    name = lost[0]
    at = {found.node.index for found in reader.found if found.weight.parameter is parameters[name]}
    others = f" (so are {some(lost[1:])})" if len(lost) > 1 else ""
    told = ", ".join(f'"{pattern}": "unused"' for pattern in patterns_of(lost, parameters))
    subject = "they stay as they are" if others else "it stays as it is"
    stay = f"say that {subject} with roles={{{told}}}"
    freeze = f'or freeze it: model.get_parameter("{name}").requires_grad_(False)'
    if at:
        if outputs := _depending(reader, at):
            choose = f"choose the output that depends on it with output={outputs!r}, "
            return f"parameter {name} is used, but not on the way to the output{others}: {choose}{stay}, {freeze}"
        return f"parameter {name} is used, but nothing that the model gives depends on it{others}: {stay}, {freeze}"
    branches = reader.recording.branches
    asked = (
        f" ({some(branches, 2)} asks for the value of a tensor, so other inputs may go another way)" if branches else ""
    )
    return (
        f"parameter {name} is not used in this forward by any operation that can be seen{others}: give example inputs that "
        f'reach it{asked}, {stay}, say what it is, if something unseen uses it, with roles={{"{name}": "linear"}}, {freeze}'
    )


def _depending(reader: Reader, at: Collection[int]) -> str | tuple[str, ...] | None:
    """The output that depends on some of these nodes, together with the one that was chosen."""
    chosen = [name for name, value in reader.recording.fields.items() if value is reader.recording.output]
    for name, value in reader.recording.fields.items():
        node = reader.meaning.get(value.index)
        if isinstance(node, Node) and name not in chosen and any(i in reaching(reader.graph, node) for i in at):
            return (*chosen, name) if chosen else name
    return None


def patterns_of(lost: Sequence[str], parameters: Collection[str]) -> list[str]:
    """Patterns that match these parameters and no others: modules that are lost as a whole, and * for equal blocks.

    >>> names = ["h.0.up.weight", "h.0.up.bias", "h.0.r", "h.1.up.weight", "h.1.up.bias", "h.1.r"]
    >>> patterns_of(["h.0.up.weight", "h.0.up.bias", "h.1.up.weight", "h.1.up.bias", "h.1.r"], names)
    ['h.*.up', 'h.1']
    """
    out: list[str] = []
    for name in lost:
        if any(matches(name, pattern) for pattern in out):
            continue
        parts = name.split(".")
        prefixes = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
        every = [re.sub(r"(?<=\.)\d+(?=\.)", "*", prefix) for prefix in prefixes]
        candidates = [pattern for pair in zip(every, prefixes, strict=True) for pattern in pair]
        out.append(next(p for p in candidates if all(n in lost for n in parameters if matches(n, p))))
    return out
