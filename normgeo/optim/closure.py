"""Closures: the loss for parts that ask for it, and Hessian-vector products from its graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from normgeo.optim.stack import Parts, Stack

__all__ = ["Grads", "evaluate", "hessian_vector_product"]

Grads = dict[Parameter, Tensor]
"""gradients that can be differentiated again"""


def evaluate(
    closure: Callable[[], Any] | None,
    parts: Sequence[Parts],
    parameters: Callable[[], list[Parameter]],
    count: Callable[[], int],
) -> tuple[Any, Grads | None]:
    """The loss of a step and, when some part wants Hessian-vector products in it, the graph of the gradients.

    A closure calls backward itself, as everywhere in torch, unless a part needs "hvp": then it only returns the loss.
    """
    needs = [part.needs for group in parts for part in group]
    if closure is None:
        if any({"loss", "hvp"} & set(need) for need in needs):
            raise ValueError(
                "a part of this optimizer needs the loss; call opt.step(closure) with a closure that returns it"
            )
        return None, None
    periods = [need["hvp"] for need in needs if "hvp" in need]
    with torch.enable_grad():
        loss = closure()
        return (_differentiate(loss, parameters(), periods, count())) if periods else (loss, None)


def _differentiate(
    loss: Any, parameters: list[Parameter], periods: list[int], count: int
) -> tuple[Tensor, Grads | None]:
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        raise ValueError("Hessian-vector products need a closure that returns the loss with its graph")
    due = any(count % period == 0 for period in periods)
    try:
        grads = torch.autograd.grad(loss, parameters, create_graph=due, allow_unused=True)
    except RuntimeError as error:
        raise ValueError(
            "Hessian-vector products need the graph of the loss: return the loss from the closure and do not call "
            "backward() in it"
        ) from error
    for p, g in zip(parameters, grads, strict=True):
        p.grad = None if g is None else g.detach()
    graph = {p: g for p, g in zip(parameters, grads, strict=True) if g is not None} if due else None
    return loss.detach(), graph


def hessian_vector_product(stack: Stack, graph: Grads) -> Callable[[Tensor], Tensor]:
    """V (n, *shape) ↦ H V, H the block of the Hessian that belongs to the leaves of the stack."""

    def product(V: Tensor) -> Tensor:
        tangents = {p: v for p, v in stack.as_parameters(V).items() if p in graph}
        params = list(tangents)
        with torch.enable_grad():
            grads = [graph[p] for p in params]
            rows = torch.autograd.grad(grads, params, list(tangents.values()), retain_graph=True, allow_unused=True)
        found = {p: row for p, row in zip(params, rows, strict=True) if row is not None}
        return stack.from_parameters({p: found.get(p, torch.zeros_like(p)) for p in stack.params})

    return product
