"""The algebra of modules: composition, sums, multiples and powers are modules again, with the geometry that follows."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal, overload

from torch import Tensor, nn

from normgeo.geometry import LINEAR, Graph, Node, bound, mass, register, tare, trace
from normgeo.geometry.declare import single

__all__ = ["Module", "Mul", "Parallel", "Sequential", "Sum"]


class Module(nn.Module):
    """A torch module with an algebra. `a @ b` runs b, then a; a tuple of modules runs each on the same input; `2 * a`
    scales the output and `a * 2` the input.

    >>> import torch
    >>> from normgeo.nn import Identity, Linear, ReLU
    >>> block = 0.75 * Identity() + 0.25 * (Linear(8, 8) @ ReLU() @ Linear(8, 8))
    >>> block(torch.zeros(2, 8)).shape, block.mass, (block**3).mass
    (torch.Size([2, 8]), 2.0, 6.0)
    """

    @property
    def mass(self) -> float:
        """Σ of the masses of the weights inside."""
        return mass(self)

    def tare(self, absolute: float = 1.0, relative: float | None = None) -> Module:
        """Rescale all masses inside to add up to `absolute`, or by the factor `relative`; returns the module."""
        tare(self, absolute, relative)
        return self

    def __matmul__(self, other: nn.Module | tuple[nn.Module, ...]) -> Module:
        return _chain(_lift(other), self)

    def __rmatmul__(self, other: nn.Module | tuple[nn.Module, ...]) -> Module:
        return _chain(self, _lift(other))

    def __add__(self, other: nn.Module) -> Module:
        return Sum(self, other)

    def __radd__(self, other: nn.Module | Literal[0]) -> Module:
        """So that sum([a, b]) and torch modules on the left work."""
        return self if other == 0 else Sum(_lift(other), self)

    def __sub__(self, other: nn.Module) -> Module:
        return Sum(self, _chain(other, Mul(-1.0)))

    def __neg__(self) -> Module:
        return -1.0 * self

    def __rmul__(self, factor: float) -> Module:
        return _chain(self, Mul(factor))

    def __mul__(self, factor: float) -> Module:
        return _chain(Mul(factor), self)

    def __truediv__(self, divisor: float) -> Module:
        return self * (1 / divisor)

    def __pow__(self, times: int) -> Module:
        """`times` copies one after the other, each with weights of its own, drawn anew."""
        if not isinstance(times, int) or times < 0:
            raise ValueError(f"a module can be repeated 0, 1, 2, ... times, got {times}")
        return Sequential(self, *(_redrawn(self) for _ in range(times - 1))) if times else Sequential()


class Sequential(Module):
    """Modules one after the other, left to right, by position and then by name. A tuple is passed on as arguments.

    >>> from normgeo.nn import Linear, ReLU
    >>> list(dict(Sequential(up=Linear(2, 8), act=ReLU(), down=Linear(8, 2)).named_parameters()))
    ['up.weight', 'down.weight']
    """

    def __init__(self, *modules: nn.Module, **named: nn.Module) -> None:
        super().__init__()
        _add_children(self, modules, named)

    def forward(self, *x: Any) -> Any:
        out: Any = x if len(x) != 1 else x[0]
        for _, module in parts(self):
            out = module(*out) if isinstance(out, tuple) else module(out)
        return out

    def __len__(self) -> int:
        return len(self._modules)

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...

    @overload
    def __getitem__(self, index: slice) -> Sequential: ...

    def __getitem__(self, index: int | slice) -> nn.Module:
        """A module, or for a slice the same modules under the same names as a Sequential."""
        chosen = list(parts(self))[index]
        return Sequential(**dict(chosen)) if isinstance(chosen, list) else chosen[1]


class Parallel(Module):
    """A tuple of modules, each given the same input.

    >>> import torch
    >>> from normgeo.nn import Identity, Linear
    >>> [y.shape[-1] for y in Parallel(Identity(), Linear(4, 2))(torch.zeros(4))]
    [4, 2]
    """

    def __init__(self, *modules: nn.Module, **named: nn.Module) -> None:
        super().__init__()
        _add_children(self, modules, named)

    def forward(self, *x: Any) -> tuple[Any, ...]:
        return tuple(module(*x) for _, module in parts(self))


class Sum(Module):
    """The sum of modules given the same input; sensitivities and sizes add.

    >>> import torch
    >>> from normgeo.nn import Identity
    >>> Sum(Identity(), Identity())(torch.ones(2))
    tensor([2., 2.])
    """

    def __init__(self, *modules: nn.Module, **named: nn.Module) -> None:
        super().__init__()
        if not modules and not named:
            raise ValueError("Sum needs at least one module")
        _add_children(self, modules, named)

    def forward(self, *x: Any) -> Tensor:
        first, *rest = (module(*x) for _, module in parts(self))
        return sum(rest, start=first)


class Mul(Module):
    """x ↦ factor·x, of every tensor of a tuple; sensitivity |factor|.

    >>> import torch
    >>> Mul(-2.0)(torch.ones(2))
    tensor([-2., -2.])
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        if not isinstance(factor, int | float) or not math.isfinite(factor):
            raise ValueError(f"a module can be multiplied by a finite number, got {factor!r}")
        self.factor = float(factor)

    def forward(self, *x: Tensor) -> Any:
        return self.factor * x[0] if len(x) == 1 else tuple(self.factor * each for each in x)

    def extra_repr(self) -> str:
        return f"{self.factor:g}"


@register(Sequential)
def _(module: Sequential, graph: Graph, *x: Any) -> Any:
    out: Any = x if len(x) != 1 else x[0]
    for name, child in parts(module):
        out = trace(child, graph, *(out if isinstance(out, tuple) else (out,)), name=name)
    return out


@register(Parallel)
def _(module: Parallel, graph: Graph, *x: Any) -> tuple[Any, ...]:
    return tuple(trace(child, graph, *x, name=name) for name, child in parts(module))


@register(Sum)
def _(module: Sum, graph: Graph, *x: Any) -> Node:
    terms = [single(trace(child, graph, *x, name=name), "Sum") for name, child in parts(module)]
    return graph.op("add", *terms, features=max(t.features or 0 for t in terms) or None, curvature=LINEAR)


@register(Mul)
def _(module: Mul, graph: Graph, *x: Node) -> Any:
    out = tuple(graph.op("mul", each, slots=bound(abs(module.factor)), curvature=LINEAR) for each in x)
    return out if len(out) > 1 else out[0]


def parts(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children by name, one that is used twice both times (`named_children` would drop the second)."""
    return ((name, child) for name, child in module._modules.items() if child is not None)


def _lift(other: nn.Module | tuple[nn.Module, ...]) -> nn.Module:
    if isinstance(other, tuple):
        return Parallel(*other)
    if not isinstance(other, nn.Module):
        raise TypeError(f"modules compose with modules and tuples of modules, got {type(other).__name__}")
    return other


def _chain(first: nn.Module, second: nn.Module) -> Sequential:
    """`first`, then `second`; chains are joined into one so that names stay short, and given names are kept."""
    joined = [part for module in (first, second) for part in _links(module)]
    taken: set[str] = set()
    out = Sequential()
    for position, (name, module) in enumerate(joined):
        unique = name if name and name not in taken else str(position)
        taken.add(unique)
        out.add_module(unique, module)
    return out


def _links(module: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    if type(module) is not Sequential:
        return [("", module)]
    return [("" if name.isdigit() else name, child) for name, child in parts(module)]


def _add_children(parent: nn.Module, modules: Iterable[nn.Module], named: dict[str, nn.Module]) -> None:
    for name, module in [*((str(i), m) for i, m in enumerate(modules)), *named.items()]:
        if not isinstance(module, nn.Module):
            raise TypeError(f"{type(parent).__name__} takes modules, got {type(module).__name__} for {name!r}")
        parent.add_module(name, module)


def _redrawn(module: nn.Module) -> nn.Module:
    fresh = copy.deepcopy(module)
    for part in fresh.modules():
        if callable(draw := getattr(part, "reset_parameters", None)):
            draw()
    return fresh
