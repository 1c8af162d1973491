"""The rules of torch's functions: what each does, and which have one."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

__all__ = ["RULES", "body", "canonical_name", "operation", "rule_of"]

Rule = Callable[[Any], Any]
RULES: dict[Any, Rule] = {}
R = TypeVar("R", bound=Rule)


def operation(*functions: str | Callable[..., Any]) -> Callable[[R], R]:
    """Declare what a torch function does: by itself, or by its name, which holds for torch.f, Tensor.f and F.f alike.
    The rule gets an `Operation` and returns the node of its output (a tuple for several outputs).

    >>> import torch, normgeo as ng
    >>> @ng.geometry.operation("sinc")
    ... def _(op): return op.result(op.data(0), slots=ng.geometry.bound(1.38))
    >>> class Sinc(torch.nn.Linear):
    ...     def forward(self, x): return torch.sinc(super().forward(x))
    >>> ng.compile(Sinc(4, 2), (torch.ones(1, 4),)).assumed
    {}
    """

    def keep(rule: R) -> R:
        RULES.update(dict.fromkeys(functions, rule))
        return rule

    return keep


def rule_of(function: Any, name: str) -> Rule | None:
    """The rule of a function, or of its name."""
    return RULES.get(function) or RULES.get(name)


def canonical_name(function: Any) -> str:
    """One name for torch.add, Tensor.add, Tensor.add_ and Tensor.__add__; a property has its own.

    >>> import torch
    >>> canonical_name(torch.Tensor.add_), canonical_name(torch.Tensor.T.__get__)
    ('add', 'T')
    """
    name = getattr(function, "__name__", None) or str(getattr(function, "_qualified_op_name", function))
    if name == "__get__":
        name = function.__self__.__name__
    return name.rsplit("::", 1)[-1].strip("_")


def body(function: Any) -> Callable[..., Any] | None:
    """A function of torch that is written in Python, without the check at its top that hands it to a mode as a whole."""
    if not isinstance(function, FunctionType) or not function.__module__.startswith("torch"):
        return None
    checks = [name for name in function.__code__.co_names if name.startswith("has_torch_function")]
    checks = [name for name in checks if name in function.__globals__]
    if not checks or function.__name__.startswith("__"):
        return None
    names = {**function.__globals__, **dict.fromkeys(checks, lambda *_: False)}
    inside = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    inside.__kwdefaults__ = function.__kwdefaults__
    return inside
