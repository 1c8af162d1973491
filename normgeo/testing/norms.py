"""The laws of norms and of polar factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normgeo.linalg import SVD, Polar
from normgeo.norms import Norm, with_polar

__all__ = ["check_norm", "check_polar"]

EXACT = 1e-10


def check_norm(norm: Norm, shape: Sequence[int], *, seed: int = 0) -> None:
    """All laws of `Norm`, in float64 with exact polar factors, on a random gradient and weight of this shape.

    >>> from normgeo.norms import RMSToRMS
    >>> check_norm(2 * RMSToRMS(), (5, 3))
    """
    norm = with_polar(norm, SVD())
    g, w, z = (_gaussian(shape, seed + k) for k in range(3))
    _duality(norm, g, w)
    _duality(norm, _low_rank(g), w)
    _homogeneity(norm, g, w)
    _batch(norm, g, w)
    _independence(norm, g)
    _projection(norm, w, z)
    _matrices(norm, w)
    _scales(norm, g)
    _equal("norm(init)", norm.norm(_init(norm, shape, seed)), 1.0)
    nan = g.clone()
    nan.flatten()[0] = torch.nan
    for bad in (torch.nan, torch.inf):
        nan.flatten()[0] = bad
        assert not norm.norm(nan).isfinite(), f"norm hides {bad}"
        assert not norm.dualize(nan).isfinite().all(), f"dualize hides {bad}"


def check_polar(polar: Polar, shape: Sequence[int], *, error: float, overshoot: float = 1e-5, seed: int = 0) -> None:
    """Singular values of polar(G) in [1 - error, 1 + overshoot] where those of G/‖G‖_F are in [1e-3, 1]; ⟨G, P⟩ at least
    (1 - error)·nuclear norm; zero to zero; powers of two and a batch axis change nothing. In float32, against an SVD in
    float64.

    >>> from normgeo.linalg import PolarExpress
    >>> check_polar(PolarExpress(), (8, 5), error=0.01)
    """
    g = _gaussian(shape, seed)
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    floor = 2e-3 * torch.linalg.vector_norm(s)
    g = ((u * s.clamp_min(floor).unsqueeze(-2)) @ vt).float()
    p = polar(g)
    sizes = torch.linalg.svdvals(p.double())
    assert sizes.min() >= 1 - error, f"a singular value falls to {sizes.min():.6f}"
    assert sizes.max() <= 1 + overshoot, f"a singular value overshoots to {sizes.max():.6f}"
    nuclear, gain = torch.linalg.svdvals(g.double()).sum(), (g.double() * p.double()).sum()
    assert gain >= (1 - error) * nuclear, f"⟨G, P⟩ = {gain:.6g} of {nuclear:.6g}"
    assert not polar(torch.zeros_like(g)).any(), "zero does not go to zero"
    assert torch.equal(polar(g * 2.0**100), p), "2^100 changes the polar factor"
    assert torch.equal(polar(g * 2.0**-100), p), "2^-100 changes the polar factor"
    batched = polar(torch.stack([g, g.flip(0)]))
    torch.testing.assert_close(batched[0], p, atol=1e-4, rtol=0, msg="a batch axis changes the polar factor")


def _duality(norm: Norm, g: Tensor, w: Tensor) -> None:
    d, dual = norm.dualize(g), norm.dual_norm(g)
    _equal("⟨g, dualize(g)⟩ = dual_norm(g)", (g * d).sum(), dual)
    _equal("norm(dualize(g)) = 1", norm.norm(d), 1.0)
    bound = dual * norm.norm(w)
    assert (g * w).sum() <= bound * (1 + EXACT), (
        f"⟨g, w⟩ = {(g * w).sum():.12g} > ‖g‖*·‖w‖ = {bound:.12g} for g = {g}, w = {w}"
    )
    assert norm.norm(g + w) <= (norm.norm(g) + norm.norm(w)) * (1 + EXACT), (
        f"the triangle inequality fails for {g}, {w}"
    )


def _homogeneity(norm: Norm, g: Tensor, w: Tensor) -> None:
    for c in (-3.0, 0.7):
        _equal("norm(c·w) = |c|·norm(w)", norm.norm(c * w), abs(c) * norm.norm(w))
        _equal("dual_norm(c·g) = |c|·dual_norm(g)", norm.dual_norm(c * g), abs(c) * norm.dual_norm(g))
    _equal("dualize(c·g) = dualize(g)", norm.dualize(0.7 * g), norm.dualize(g))
    _equal("dualize(-g) = -dualize(g)", norm.dualize(-g), -norm.dualize(g))
    zero = torch.zeros_like(g)
    assert not norm.dualize(zero).any(), "dualize(0) is not 0"
    assert norm.norm(zero) == 0, "norm(0) is not 0"
    assert norm.dual_norm(zero) == 0, "dual_norm(0) is not 0"


def _batch(norm: Norm, g: Tensor, w: Tensor) -> None:
    both = torch.stack([g, w])
    for name, function in (("norm", norm.norm), ("dual_norm", norm.dual_norm), ("dualize", norm.dualize)):
        _equal(f"{name} of a batch", function(both), torch.stack([function(g), function(w)]))


def _independence(norm: Norm, g: Tensor) -> None:
    """Slices along independent axes, or entries, do not see each other, where the norm says so."""
    if norm.independent:
        alone = torch.zeros_like(g)
        first = (0,) * norm.independent
        alone[first] = g[first]
        _equal("a slice on its own", norm.dualize(alone)[first], norm.dualize(g)[first])
    if norm.entrywise:
        every_other = (torch.arange(g.numel()) % 2 == 0).reshape(g.shape)
        alone, d = norm.dualize(torch.where(every_other, g, 0)), norm.dualize(g)
        _equal("an entry on its own", alone, torch.where(every_other, d, 0))
    if norm.euclidean:
        length = norm.dualize(torch.ones_like(g)).norm()
        _equal("dualize(g) = c·g/‖g‖₂", norm.dualize(g), length * g / g.norm())


def _projection(norm: Norm, w: Tensor, z: Tensor) -> None:
    p = norm.project(3 * w)
    assert norm.norm(p) <= 1 + EXACT, f"norm(project(w)) = {norm.norm(p)}"
    _equal("project(project(w)) = project(w)", norm.project(p), p)
    _equal("project leaves the inside alone", norm.project(0.5 * p), 0.5 * p)
    for inside in (norm.dualize(z), -norm.dualize(z), norm.project(z), torch.zeros_like(z)):
        slope = ((3 * w - p) * (inside - p)).sum()
        assert slope <= EXACT * (1 + (3 * w - p).norm() * (inside - p).norm()), (
            f"project(w) is not nearest to w: {inside} is nearer"
        )


def _matrices(norm: Norm, w: Tensor) -> None:
    """For norms that are a largest singular value."""
    sizes: list[Tensor] = []

    def look(x: Tensor) -> Tensor:
        sizes.append(torch.linalg.svdvals(x).amax())
        return 2 * x

    try:
        _equal("on_matrices(f) puts f(X) where X was", norm.on_matrices(look, w), 2 * w)
    except NotImplementedError:
        return
    _equal("norm(w) = max σ_max over its matrices", norm.norm(w), torch.stack(sizes).amax())


def _scales(norm: Norm, g: Tensor) -> None:
    g = g.float()
    d = norm.dualize(g)
    assert d.isfinite().all(), "dualize is not finite in float32"
    for power in (100, -100):
        assert torch.equal(norm.dualize(g * 2.0**power), d), f"dualize changes under a factor 2^{power}"


def _init(norm: Norm, shape: Sequence[int], seed: int) -> Tensor:
    return norm.init(shape, torch.Generator().manual_seed(seed), torch.float64)


def _gaussian(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _low_rank(g: Tensor) -> Tensor:
    """g with all but its first slice along the last axis set to 0: rank 1 for matrices, a single entry for vectors."""
    if g.ndim == 0:
        return g
    out = torch.zeros_like(g)
    out[..., 0] = g[..., 0]
    return out


def _equal(law: str, got: Tensor, wanted: Tensor | float) -> None:
    wanted = torch.as_tensor(wanted, dtype=got.dtype)
    close = torch.allclose(got, wanted, rtol=EXACT, atol=EXACT * float(wanted.abs().max()))
    assert close, f"{law} fails: {got} against {wanted}"
