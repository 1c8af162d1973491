"""How a module tells its geometry: one registered function per module type, ours and anybody's alike."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from normgeo.geometry.graph import Graph, Node

__all__ = ["GeometryError", "declare", "register", "trace", "unwrapped"]

WRAPPERS = {
    "DataParallel",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "OptimizedModule",
    "CheckpointWrapper",
}


class GeometryError(ValueError):
    """A module whose geometry is unknown or impossible; the message names it and the line to write.

    >>> try:
    ...     declare(nn.Bilinear(1, 1, 1), Graph())
    ... except GeometryError as error:
    ...     print(str(error)[:59])
    module Bilinear (the model itself) has no geometry; write @
    """


@functools.singledispatch
def declare(module: nn.Module, graph: Graph, *inputs: Any) -> Any:
    """Add a module's operations to the graph and return the node of its output (a tuple of nodes for several).

    >>> from normgeo.nn import ReLU
    >>> declare(ReLU(), (graph := Graph()), graph.input()).op
    'relu'
    """
    name, path = type(module).__name__, ".".join(graph.path) or "the model itself"
    raise GeometryError(
        f"module {name} ({path}) has no geometry; write @normgeo.geometry.register({name}) above a function "
        f"(module, graph, *inputs) that adds its operations, or build it from normgeo.nn modules"
    )


F = TypeVar("F", bound=Callable[..., Any])


def register(module_type: type[nn.Module]) -> Callable[[F], F]:
    """Declare the geometry of a module type.

    >>> import torch, normgeo as ng
    >>> class Halve(torch.nn.Module):
    ...     def forward(self, x): return x / 2
    >>> @ng.geometry.register(Halve)
    ... def _(module, graph, x): return graph.op("halve", x, slots=ng.geometry.bound(0.5))
    >>> ng.compile(ng.nn.Linear(4, 4) @ Halve() @ ng.nn.Linear(4, 4)).leaves[0].sensitivity
    0.5
    """

    def keep(function: F) -> F:
        declare.register(module_type)(function)
        return function

    return keep


def trace(module: nn.Module, graph: Graph, *inputs: Any, name: str = "") -> Any:
    """Declare a child module from within its parent's function; `name` is its name there and shows in errors.

    >>> from normgeo.nn import Identity
    >>> trace(Identity(), (graph := Graph()), graph.input()).op
    'input'
    """
    module = unwrapped(module)
    if name:
        graph.path.append(name)
    try:
        _check_fits(module, graph, inputs)
        return declare(module, graph, *inputs)
    finally:
        if name:
            graph.path.pop()


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch's wrappers: DataParallel, DDP, FSDP, torch.compile, activation checkpointing.

    >>> unwrapped(nn.DataParallel(nn.ReLU()))
    ReLU()
    """
    while type(module).__name__ in WRAPPERS and type(module).__module__.startswith("torch."):
        module = next(module.children())
    return module


def _check_fits(module: nn.Module, graph: Graph, inputs: tuple[Any, ...]) -> None:
    """Refuse a number of inputs that the declaration does not take, and a declaration inherited by another forward."""
    name, path = type(module).__name__, ".".join(graph.path) or "the model itself"
    owner = next(cls for cls in type(module).__mro__ if cls in declare.registry)
    if owner is not object and type(module).forward is not getattr(owner, "forward", None):
        raise GeometryError(
            f"module {name} ({path}) has a forward of its own, so the geometry of {owner.__name__} does not hold for it; "
            f"write @normgeo.geometry.register({name})"
        )
    try:
        inspect.signature(declare.dispatch(type(module))).bind(module, graph, *inputs)
    except TypeError:
        raise GeometryError(f"{name} ({path}) cannot take the {len(inputs)} tensors before it") from None


def single(node: Any, op: str) -> Node:
    """The one node that an operation needs, or an error that says what it got."""
    if not isinstance(node, Node):
        raise GeometryError(f"{op} takes one tensor, but what runs before it gives {len(node)}")
    return node
