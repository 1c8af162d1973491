"""Closures: the loss for parts that ask for it, and Hessian-vector products from its graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Parameter
from torch.nn.attention import SDPBackend, sdpa_kernel

from normgeo.optim.ranks import Ranks, mean
from normgeo.optim.stack import Parts, Stack
from normgeo.steps.base import total

__all__ = ["Grads", "Line", "evaluate", "hessian_vector_product"]

WANTED = {"loss", "hvp", "closure"}

Grads = dict[Parameter, Tensor]
"""gradients that can be differentiated again"""


def evaluate(
    closure: Callable[[], Any] | None,
    parts: Sequence[Parts],
    parameters: list[Parameter],
    due: bool,
) -> tuple[Any, Grads | None]:
    """The loss of a step and, when Hessian-vector products are `due` in it, the graph of the gradients.

    A closure calls backward itself, as everywhere in torch, unless a part needs "hvp": then it only returns the loss.
    """
    if closure is None:
        asking = sorted({type(part).__name__ for group in parts for part in group if WANTED & set(part.needs)})
        if asking:
            raise ValueError(
                f"{', '.join(asking)} needs the loss; call opt.step(closure) with a closure that returns it"
            )
        return None, None
    differentiates = any(group.ask("hvp") for group in parts)
    with torch.enable_grad(), ExitStack() as contexts:
        if due:
            contexts.enter_context(sdpa_kernel(SDPBackend.MATH))  # fused attention has no second derivative
            contexts.enter_context(_with_copies(parameters))
        loss = closure()
        return _differentiate(loss, parameters, due) if differentiates else (loss, None)


def _with_copies(parameters: Sequence[Parameter]) -> saved_tensors_hooks:
    """Graphs that are made inside keep copies of the weights: they are still used when the first of them have moved."""
    storages = {p.untyped_storage().data_ptr() for p in parameters}
    copies: dict[Any, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if x.layout != torch.strided or x.untyped_storage().data_ptr() not in storages:
            return x
        key = (x.data_ptr(), x.dtype, x.shape, x.stride())
        if key not in copies:
            copies[key] = x.detach().clone()
        return copies[key]

    return saved_tensors_hooks(keep, lambda x: x)


def _differentiate(loss: Any, parameters: list[Parameter], due: bool) -> tuple[Tensor, Grads | None]:
    if not (isinstance(loss, Tensor) and loss.requires_grad):
        raise ValueError("Hessian-vector products need a closure that returns the loss with its graph")
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


def hessian_vector_product(stacks: Sequence[Stack], graph: Grads) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """[V (n, *shape) for each stack] ↦ [H V], H the block of the Hessian that belongs to the leaves of these stacks."""

    def product(Vs: Sequence[Tensor]) -> list[Tensor]:
        tangents: dict[Parameter, Tensor] = {}
        for stack, V in zip(stacks, Vs, strict=True):
            for p, v in stack.as_parameters(V).items():
                if p in graph:
                    tangents[p] = tangents[p] + v if p in tangents else v
        params = list(tangents)
        with torch.enable_grad():
            grads = [graph[p] for p in params]
            rows = torch.autograd.grad(grads, params, list(tangents.values()), retain_graph=True, allow_unused=True)
        found = {p: row for p, row in zip(params, rows, strict=True) if row is not None}
        return [stack.from_parameters(found) for stack in stacks]

    return product


@dataclass
class Line:
    """η ↦ loss and slope at W - η·u for the stacks of a group, before any constraint; weights and gradients are put back
    afterwards."""

    closure: Callable[[], Any]
    parameters: list[Parameter]
    differentiates: bool
    """whether the closure leaves backward to us"""
    start: Any
    """the loss at η = 0, where it is known; then the gradients are those of it"""
    together: Sequence[Ranks]
    """the ranks whose losses are averaged"""
    stacks: Sequence[Stack]
    directions: Sequence[Tensor]
    """u (n, *shape) for each stack"""

    def __call__(self, eta: Tensor | float) -> tuple[Tensor, Tensor]:
        if self.start is not None and not isinstance(eta, Tensor) and eta == 0:
            return torch.as_tensor(self.start).detach(), self._slope()
        grads = {p: (p.grad, None if p.grad is None else p.grad.clone()) for p in self.parameters}
        places = [(stack, stack.weights(), stack.present()) for stack in self.stacks]
        try:
            for (stack, W, present), u in zip(places, self.directions, strict=True):
                stack.write(W - torch.as_tensor(eta).to(W) * u, present)
            with torch.enable_grad():
                loss = self.closure()
                if self.differentiates:
                    loss, _ = _differentiate(loss, self.parameters, due=False)
            slope = self._slope()
        finally:
            for stack, W, present in places:
                stack.write(W, present)
            for p, (grad, values) in grads.items():  # the same tensors: others may hold views of them
                p.grad = grad if grad is None or values is None else grad.copy_(values)
        return mean(self.together, torch.as_tensor(loss)).detach(), slope

    def _slope(self) -> Tensor:
        """-⟨∇loss, u⟩: of the loss itself, whatever a constraint or a rule makes of its gradient."""
        both = zip(self.stacks, self.directions, strict=True)
        return -total((torch.where(u == 0, 0, stack.grads()) * u).sum() for stack, u in both)
