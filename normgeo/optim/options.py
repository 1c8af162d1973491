"""What a parameter group may be told, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from normgeo.constraints import Constraint, Decay
from normgeo.geometry import Leaf
from normgeo.optim.direction import Direction
from normgeo.optim.iterate import Iterate
from normgeo.optim.stack import Parts
from normgeo.rules import Rule
from normgeo.steps import StepSize

__all__ = [
    "ELSEWHERE",
    "KINDS",
    "OPTIONS",
    "check_capturable",
    "check_devices",
    "check_leaves",
    "check_lr",
    "check_parts",
    "decaying",
]

KINDS: dict[str, Any] = {
    "rule": Rule,
    "direction": Direction,
    "step": StepSize,
    "iterate": Iterate,
    "constraint": Constraint,
}
OPTIONS = {"params", "leaves", "lr", "decay", *KINDS}
SUPPLIED = {"loss", "hvp", "closure", "move", "moves", "updates", "validation", "turn"}

ELSEWHERE = {
    "betas": "the weight on the past is the rule's; write rule=normgeo.rules.Momentum(0.9, nesterov=True)",
    "differentiable": "steps are taken without a graph; leave differentiable out",
    "eps": "duality maps need no eps; leave it out",
    "foreach": "leaves of one norm and shape always move as one stack; leave foreach out",
    "fused": 'polar factors are batched products; write precision="fast" in place of fused',
    "maximize": "to maximize, call (-loss).backward()",
    "momentum": "it is a rule; write rule=normgeo.rules.Momentum(0.9, nesterov=True)",
    "nesterov": "it is the rule's; write rule=normgeo.rules.Momentum(0.9, nesterov=True)",
    "weight_decay": "write decay=0.1 in place of weight_decay=0.1",
}
"""options of torch's optimizers, and what to write here"""


def decaying(strength: float, constraint: Constraint | None) -> Decay:
    """decay=strength as a constraint, if there is no other."""
    if constraint is not None:
        raise ValueError("decay= and constraint= are one setting; write constraint=Decay(strength) or decay=strength")
    return Decay(strength)


def check_lr(lr: float) -> None:
    if not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"lr must be a finite number ≥ 0, got {lr}")


def check_parts(parts: Parts) -> None:
    for name, kind in KINDS.items():
        part = getattr(parts, name)
        if part is None and name == "direction":
            continue
        if not isinstance(part, kind):
            raise TypeError(f"{name}= takes a normgeo {kind.__name__}, got {part!r}")
        if missing := sorted(set(part.needs) - SUPPLIED):
            raise ValueError(
                f"{name} {type(part).__name__} needs {missing}, but this optimizer supplies {sorted(SUPPLIED)}"
            )
    if parts.direction is not None and type(parts.constraint).direct is not Constraint.direct:
        raise ValueError(f"{parts.constraint} has a direction of its own; leave out direction={parts.direction}")


def check_capturable(parts: Parts) -> None:
    """What acts every k steps, or searches along a line, decides on the host, and a graph would repeat one decision."""
    for part in parts:
        if asks := sorted({"loss", "hvp", "closure", "validation"} & set(part.needs)):
            raise ValueError(f"capturable=True: {type(part).__name__} needs {asks}, which a graph does not record")
        if "turn" in part.needs:
            raise ValueError(
                f"capturable=True: {type(part).__name__} acts every {part.needs['turn']} steps, and a graph would repeat "
                "one step; write every=1"
            )


def check_devices(params: Iterable[Tensor]) -> None:
    """Weights that have no memory yet will be others once they have, and those would silently not move."""
    if any(p.is_meta for p in params):
        raise RuntimeError(
            "weights on the meta device cannot move: model.to_empty(device=...) puts others in their place; fill those, "
            "and then make the optimizer: plan.optimizer(model)"
        )


def check_leaves(parameter: Tensor, leaves: Sequence[Leaf]) -> None:
    for leaf in leaves:
        if parameter.is_complex():
            raise ValueError(f"{leaf.name} is complex; norms here are real: store real and imaginary parts apart")
        seen = tuple(leaf.read(torch.empty(parameter.shape, device="meta")).shape)  # shards of it may not be divisible
        if seen != leaf.shape:
            raise ValueError(f"{leaf.name} has shape {seen}, but the plan was made for {leaf.shape}; compile again")
