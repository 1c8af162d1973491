"""Sensitivities measured: the operator norm of each leaf's Jacobian at example inputs, from below.

    x·μ of leaf ℓ = ‖J_ℓ‖ = max ‖J_ℓ Δ‖ over ‖Δ‖_ℓ ≤ 1 = max ‖J_ℓᵀu‖*_ℓ over ‖u‖* ≤ 1

One backward pass gives J_ℓᵀu of all leaves, so each u bounds every ‖J_ℓ‖ from below, whatever u is. The u come from the
power method for one leaf after the other: u ← norming functional of J_ℓΔ_ℓ, Δ_ℓ ← dualize(J_ℓᵀu).
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import Parameter

from normgeo.geometry.declare import GeometryError
from normgeo.geometry.differentiable import differentiable
from normgeo.geometry.leaf import Leaf
from normgeo.geometry.outputs import Wanted, choose
from normgeo.linalg import RandomizedSVD, ascent
from normgeo.norms import RMS, Norm, with_polar

__all__ = ["CAP", "FLOOR", "Measurement", "measure", "norming"]

FLOOR, CAP = 1e-6, 1.0
"""Least and largest radius that a measurement may lead to. Norms of leaves are such that weights have sizes around 1, so a
radius of 1 lets one step of size 1 replace a weight."""
EXPLORE = 1 / 3
"""The share of the backwards that start afresh, the first ones: they look for the worst tokens, the others from there for
the worst directions."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Measurement:
    """What `measure` found: lower estimates of x·μ, by name of leaf.

    >>> Measurement({"w": 2.0}, {"w": (1.0, 2.0)}, {"w": 0.1}, 2).products["w"]
    2.0
    """

    products: Mapping[str, float]
    """the largest ‖J_ℓᵀu‖* found"""
    history: Mapping[str, tuple[float, ...]]
    """‖J_ℓᵀu‖* of each backward, draw after draw"""
    levels: Mapping[str, float]
    """the norm that the weight had at least, in the last draw"""
    backwards: int

    def apply(self, leaves: Sequence[Leaf], limits: tuple[float, float] = (FLOOR, CAP)) -> tuple[Leaf, ...]:
        """The leaves with measured x·μ: x as it was, μ so that the product is right, the radius (m/M)/(x·μ) within limits.
        A radius that was given stays."""
        total = sum(leaf.mass for leaf in leaves if leaf.trainable)
        return tuple(_measured(leaf, self.products[leaf.name], total, limits) for leaf in leaves)


def measure(
    model: nn.Module,
    leaves: Sequence[Leaf],
    parameters: Mapping[str, Parameter],
    inputs: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    output: Wanted = None,
    axis: int = -1,
    output_norm: Norm | None = None,
    draws: int = 3,
    backwards: int = 32,
    limits: tuple[float, float] = (FLOOR, CAP),
    seed: int = 0,
) -> Measurement:
    """‖J_ℓ‖ of every leaf at model(*inputs, **kwargs), from below, with `backwards` backward passes in all.

    The output is what `compile` would choose, measured in `output_norm` over the features on `axis` (RMS by default),
    maximum over everything else. x·μ is the worst over `draws` of the weights: in the first they are the model's own, in
    the others a random step of one radius away, r = (m/M)/‖J_ℓ‖ as far as it is known by then (m/M at first). A weight
    whose norm is less than its radius is drawn anew at that norm, since next to a zero nothing seems to matter.

    The model runs in evaluation mode and in the dtype of its weights; sizes are computed in float32 at least. Modes,
    random state, buffers, weights and gradients are left as they were. Matrices with more than 32 rows and columns are
    dualized by `linalg.RandomizedSVD`, which never finds too much; `parameters` are those that the leaves name.

    >>> layer = nn.Linear(2, 2, bias=False)
    >>> _ = nn.init.eye_(layer.weight)
    >>> from normgeo.norms import RMSToRMS
    >>> leaf = Leaf("weight", "weight", (2, 2), "linear", RMSToRMS())
    >>> found = measure(layer, [leaf], dict(layer.named_parameters()), (torch.tensor([[3.0, 3.0], [1.0, 0.0]]),))
    >>> round(found.products["weight"], 4)
    3.0
    """
    if not 1 <= draws <= backwards:
        raise ValueError(f"measure: draws must be ≥ 1 and backwards at least as many, got {draws} and {backwards}")
    if any(p.is_meta for p in parameters.values()):
        raise GeometryError("parameters on the meta device have no values to measure at; materialize the model first")
    random = torch.Generator().manual_seed(seed)
    leaves = [dataclasses.replace(leaf, norm=with_polar(leaf.norm, RandomizedSVD())) for leaf in leaves]
    total = sum(leaf.mass for leaf in leaves if leaf.trainable) or 1.0
    shares = {leaf.name: leaf.mass / total for leaf in leaves}
    # A leaf without mass does not move; it counts as any other if it starts at 0.
    levels = {name: share or 1 / len(leaves) for name, share in shares.items()}
    search = _Search(leaves, backwards, axis, output_norm, random)
    with undisturbed(model), differentiable():
        f = function_of(model, parameters, inputs, kwargs or {}, output)
        for draw in range(draws):
            if draw:
                best = search.best()
                levels = {name: _radius(shares[name] or level, best[name], limits) for name, level in levels.items()}
            weights = _draw(leaves, parameters, levels, step=draw > 0, random=random)
            search.run(_Linear(f, weights), backwards // draws + (draw < backwards % draws))
    history = {name: tuple(found) for name, found in search.found.items()}
    if bad := [name for name, found in history.items() if not math.isfinite(sum(found))]:
        raise GeometryError(f"{bad[0]}: its Jacobian has NaN or Inf at these inputs; check the inputs and the weights")
    return Measurement(search.best(), history, levels, backwards)


def norming(y: Tensor, axis: int = -1, norm: Norm | None = None) -> Tensor:
    """u with ⟨u, y⟩ = max over tokens (or pixels) of ‖y_t‖ and dual norm 1: 0 except at the worst token, where it is the
    gradient of the norm there. RMS over the features unless a norm is given.

    >>> norming(torch.tensor([[1.0, 1.0], [3.0, 3.0]]))
    tensor([[0.0000, 0.0000],
            [0.5000, 0.5000]])
    """
    last = y.detach().movedim(axis, -1)
    rows = last.reshape(-1, last.shape[-1]).to(torch.promote_types(y.dtype, torch.float32))
    norm = norm or RMS()
    worst = int(norm.norm(rows).argmax())
    with torch.enable_grad():
        row = rows[worst].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(norm.norm(row), row)
    u = torch.zeros_like(rows)
    u[worst] = gradient.nan_to_num(0.0) if not row.any() else gradient
    return u.reshape(last.shape).movedim(-1, axis).to(y.dtype)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode and uncompiled; afterwards modes and random states are what they were."""
    modes = {module: module.training for module in model.modules()}
    # Nothing is compiled unless this is loaded, and loading it takes seconds.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    try:
        with torch.random.fork_rng(), eager:
            model.eval()
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def function_of(
    model: nn.Module,
    parameters: Mapping[str, Parameter],
    inputs: Sequence[Any],
    kwargs: Mapping[str, Any],
    output: Wanted,
) -> Callable[[Tensors], Tensor]:
    """weights by name ↦ output. Buffers are copies, for a forward that writes into them. A module that is used twice is
    given its weights once: torch's own tying would put them in twice and restore the second time what it had put in the
    first."""
    names = {id(p): name for name, p in parameters.items()}
    modules = [(f"{path}." if path else "", module) for path, module in model.named_modules()]
    owned = [(path + own, p) for path, module in modules for own, p in module.named_parameters(recurse=False)]
    buffers = [(path + own, b) for path, module in modules for own, b in module.named_buffers(recurse=False)]

    def f(weights: Tensors) -> Tensor:
        given = {place: weights[names[id(p)]] for place, p in owned if id(p) in names}
        copies = {place: b.clone() for place, b in buffers}
        out = torch.func.functional_call(model, {**copies, **given}, tuple(inputs), dict(kwargs), tie_weights=False)
        return choose(out, output)

    return f


def _draw(
    leaves: Sequence[Leaf],
    parameters: Mapping[str, Parameter],
    levels: Mapping[str, float],
    *,
    step: bool,
    random: torch.Generator,
) -> Tensors:
    """The weights, a random step away if `step`, with the norm of every trainable leaf at least its level."""
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    for leaf in leaves:
        if not leaf.trainable:
            continue
        stored, level = weights[leaf.parameter], levels[leaf.name]
        seen = leaf.read(stored).to(_work(stored))

        def drawn(leaf: Leaf = leaf, level: float = level, like: Tensor = seen) -> Tensor:
            return (level * leaf.norm.init(leaf.shape, random, torch.float32)).to(like)

        moved = seen + drawn() if step else seen
        leaf.write(stored, (drawn() if leaf.norm.norm(moved) < level else moved).to(stored.dtype))
    return weights


class _Linear:
    """f near one point: Δ ↦ JΔ and u ↦ Jᵀu."""

    def __init__(self, f: Callable[[Tensors], Tensor], weights: Tensors) -> None:
        self.f, self.weights = f, weights
        with torch.enable_grad():
            self.point = {name: w.requires_grad_() for name, w in weights.items()}
            self.y = f(self.point)
        if not self.y.requires_grad:
            raise GeometryError("the output does not depend on any parameter; is the forward under torch.no_grad()?")
        self.exact = True

    def push(self, delta: Tensors) -> Tensor:
        """JΔ by forward differentiation, or where an operation has none, by a finite difference: that is good enough to
        choose u, and what is found for a u is exact. Δ has the one parameter that moves."""
        with torch.no_grad():
            if self.exact:
                try:
                    return self._dual(delta)
                except (NotImplementedError, RuntimeError):
                    self.exact = False
            return self._difference(delta)

    def pull(self, u: Tensor) -> Tensors:
        """Jᵀu."""
        found = torch.autograd.grad(
            self.y, list(self.point.values()), u, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return dict(zip(self.point, found, strict=True))

    def _dual(self, delta: Tensors) -> Tensor:
        with forward_ad.dual_level():
            fixed = {name: w.detach() for name, w in self.point.items()}
            moving = {name: forward_ad.make_dual(fixed[name], d.to(fixed[name].dtype)) for name, d in delta.items()}
            tangent = forward_ad.unpack_dual(self.f({**fixed, **moving})).tangent
        return torch.zeros_like(self.y) if tangent is None else tangent

    def _difference(self, delta: Tensors) -> Tensor:
        fixed = {name: w.detach() for name, w in self.point.items()}
        (name, d), *_ = delta.items()
        ratio = float(fixed[name].float().norm() / d.float().norm().clamp_min(1e-30))
        step = (ratio or 1.0) * torch.finfo(self.y.dtype).eps ** (1 / 3)
        return (self.f({**fixed, name: fixed[name] + step * d}) - self.y) / step


class _Search:
    """Which change to push forward next, and what the gradients that came back said of each leaf."""

    def __init__(
        self, leaves: Sequence[Leaf], backwards: int, axis: int, norm: Norm | None, random: torch.Generator
    ) -> None:
        self.leaves, self.axis, self.norm, self.random = leaves, axis, norm, random
        self.found: dict[str, list[float]] = {leaf.name: [] for leaf in leaves}
        self.directions: Tensors = {}
        self.order: list[Leaf] = []
        self.left = round(EXPLORE * backwards)

    def run(self, linear: _Linear, rounds: int) -> None:
        """Find ‖J_ℓᵀu‖* of every leaf for as many choices of u. What was learnt at other weights is where it starts."""
        self.like = linear.weights
        first = self.choose({})
        for _, gradients in islice(ascent(linear.push, linear.pull, self.unit, self.choose, first), rounds):
            self.record(gradients)

    def best(self) -> dict[str, float]:
        return {name: max(found, default=0.0) for name, found in self.found.items()}

    def unit(self, y: Tensor) -> Tensor:
        """Where JΔ is 0 any u may find something."""
        return norming(y if y.any() else torch.randn(y.shape, generator=self.random).to(y), self.axis, self.norm)

    def choose(self, _: Tensors) -> Tensors:
        """A change of the leaf whose turn it is: random ones first, later the best so far."""
        if not self.order:
            self.order = [self.leaves[i] for i in torch.randperm(len(self.leaves), generator=self.random).tolist()]
        leaf = self.order.pop()
        like = self.like[leaf.parameter]
        if self.left > 0 or not self.directions:
            self.left -= 1
            # In float32 whatever the model's dtype, so that it is the same search.
            gaussian = torch.randn(leaf.shape, generator=self.random, dtype=torch.float32).to(like.device)
            direction = leaf.norm.dualize(gaussian)
        else:
            direction = self.directions[leaf.name]
        change = torch.zeros_like(like, requires_grad=False)
        leaf.write(change, direction.to(change.dtype))
        return {leaf.parameter: change}

    def record(self, gradients: Tensors) -> None:
        """⟨g, dualize(g)⟩ is the dual norm, or less where a polar factor is not exact."""
        for leaf in self.leaves:
            stored = gradients[leaf.parameter]
            seen = leaf.read(stored).to(_work(stored))
            direction = leaf.norm.dualize(seen)
            found = float((seen * direction).sum())
            if found >= max(self.found[leaf.name], default=0.0) or leaf.name not in self.directions:
                self.directions[leaf.name] = direction.to(stored.dtype)
            self.found[leaf.name].append(found)


def _work(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _radius(share: float, product: float, limits: tuple[float, float]) -> float:
    floor, cap = limits
    return min(max(share / product, floor), cap) if product > 0 else cap


def _measured(leaf: Leaf, product: float, total: float, limits: tuple[float, float]) -> Leaf:
    if leaf.source == "radius given":
        return leaf
    share = leaf.mass / total if total else 0.0
    if not share:
        # Nothing limits the radius 0 of a leaf without mass, and a product of 0 has no 1/(x·μ).
        product = product or 1.0
        mu = product / leaf.input_norm
        return dataclasses.replace(leaf, sensitivity=mu, radius=0.0, source="measured", known="typical")
    radius = _radius(share, product, limits)
    bound = "" if product > 0 and radius == share / product else " (floor)" if radius == limits[0] else " (cap)"
    return dataclasses.replace(
        leaf,
        sensitivity=share / radius / leaf.input_norm,
        radius=radius,
        source=f"measured{bound}",
        known="typical",
    )
