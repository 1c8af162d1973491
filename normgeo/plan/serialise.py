"""Plans as plain data: numbers, strings, lists and dicts, so that JSON holds them and loading runs no code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from normgeo.budgets import Budget, DataMetric, DynamicDataMetric, Moment, Restricted
from normgeo.geometry import Input, Leaf, View
from normgeo.linalg import Polar
from normgeo.norms import Norm
from normgeo.optim import Direction

if TYPE_CHECKING:
    from normgeo.plan.plan import Plan

__all__ = ["fields_from_json", "plan_to_json"]

FORMAT = 1

KINDS = (Norm, Polar, View, Budget, DataMetric, DynamicDataMetric, Restricted, Moment, Direction)


def plan_to_json(plan: Plan) -> str:
    data = {
        "normgeo plan": FORMAT,
        "leaves": [leaf_to_plain(leaf) for leaf in plan.leaves],
        "inputs": [dataclasses.asdict(x) for x in plan.inputs],
        "axis": plan.axis,
        "unused": plan.unused,
        "directions": {name: to_plain(direction) for name, direction in plan.directions.items()},
    }
    return json.dumps(data, indent=1)


def fields_from_json(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
        if data["normgeo plan"] != FORMAT:
            raise ValueError(f"it has format {data['normgeo plan']}, this version reads {FORMAT}")
        return {
            "leaves": tuple(leaf_from_plain(leaf) for leaf in data["leaves"]),
            "inputs": tuple(Input(**x) for x in data.get("inputs", ())),
            "axis": data.get("axis", -1),
            "unused": tuple(data.get("unused", ())),
            "directions": {name: from_plain(value) for name, value in data.get("directions", {}).items()},
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"this is not a plan that this version of normgeo can read: {error}") from error


def leaf_to_plain(leaf: Leaf) -> dict[str, Any]:
    return {field.name: to_plain(getattr(leaf, field.name)) for field in dataclasses.fields(leaf)}


def leaf_from_plain(data: dict[str, Any]) -> Leaf:
    values = {key: from_plain(value) for key, value in data.items()}
    return Leaf(**{**values, "shape": tuple(values["shape"])})


def to_plain(value: Any) -> Any:
    if isinstance(value, KINDS) and dataclasses.is_dataclass(value):
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"type": _name(type(value)), **fields}
    if isinstance(value, torch.dtype):
        return {"type": "dtype", "name": str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, str | int | float | None):
        return value
    raise TypeError(
        f"a plan cannot be saved with {value!r} in it; norms must be dataclasses of plain values, and so must budgets"
    )


def from_plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(from_plain(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = value["type"]
    if kind == "dtype":
        return getattr(torch, value["name"])
    classes: list[type] = [
        View,
        DataMetric,
        DynamicDataMetric,
        *(each for base in (Norm, Polar, Budget, Restricted, Moment, Direction) for each in _subclasses(base)),
    ]
    known = {_name(each): each for each in classes}
    if kind not in known:
        raise ValueError(f"the plan uses {kind}, which is not defined here; import the module that defines it first")
    return known[kind](**{key: from_plain(item) for key, item in value.items() if key != "type"})


def _name(cls: type) -> str:
    """Ours by their names and, where another room has that name too, their rooms; others with their modules."""
    package, room = (*cls.__module__.split("."), "")[:2]
    if package != "normgeo":
        return f"{cls.__module__}.{cls.__qualname__}"
    return cls.__name__ if room in ("norms", "linalg", "geometry") else f"{room}.{cls.__name__}"


def _subclasses(base: type) -> Iterator[type]:
    each: type
    for each in base.__subclasses__():
        yield each
        yield from _subclasses(each)
