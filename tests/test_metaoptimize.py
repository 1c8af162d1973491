"""MetaOptimize: Algorithm 3 written out, the exact forms against autograd, and its known facts."""

import math

import pytest
import torch
from helpers import gaussian, seeds
from hypothesis import given
from torch.nn import Parameter

import normgeo as ng
from normgeo.constraints import Decay, Free
from normgeo.optim import Direction, Optimizer
from normgeo.rules import Momentum, Plain, Rule
from normgeo.steps import Linear, MetaAdam, MetaLion, MetaOptimize, MetaSGD

METAS = [MetaSGD(0.01), MetaLion(0.01), MetaAdam(0.01)]


class Gradient(Direction):
    def __call__(self, M, state, W):
        return M


class Adam(Rule):
    """μ·m/√v with the updated averages, ε = 1e-12 outside the root."""

    def init(self, W, independent=0):
        return {"m": torch.zeros_like(W), "v": torch.zeros_like(W), "t": torch.zeros(len(W), dtype=W.dtype)}

    def update(self, G, state):
        state["t"] = t = state["t"] + 1
        state["m"] = 0.9 * state["m"] + 0.1 * G
        state["v"] = 0.99 * state["v"] + 0.01 * G.square()
        mu = ((1 - 0.99**t).sqrt() / (1 - 0.9**t)).reshape(-1, *[1] * (G.ndim - 1))
        return mu * state["m"] / (state["v"].sqrt() + 1e-12)


def alone(w, **options):
    leaf = ng.Leaf("w", "w", tuple(w.shape), "linear", ng.norms.Linf())
    return Optimizer([{"params": [w], "leaves": [(leaf,)]}], **options)


def psd(n, seed):
    A = gaussian(n, n, seed=seed)
    return A @ A.mT / n + 0.05 * torch.eye(n, dtype=A.dtype)


# ---- Algorithm 3 for three bases and three metas


class Meta:
    """The meta updates of Algorithm 3 with m and v of this step, for one β."""

    def __init__(self, meta):
        self.meta, self.m, self.v, self.t = meta, 0.0, 0.0, 0

    def __call__(self, z):
        self.t += 1
        eta = self.meta.rate
        if isinstance(self.meta, MetaSGD):
            return -eta * z
        old, rho = self.m, self.meta.rho
        self.m = rho * self.m + (1 - rho) * z
        if isinstance(self.meta, MetaLion):
            c = self.meta.c * old + (1 - self.meta.c) * z
            return -eta * math.copysign(1, c) if c else 0.0
        self.v = self.meta.lam * self.v + (1 - self.meta.lam) * z**2
        mu = math.sqrt(1 - self.meta.lam**self.t) / (1 - rho**self.t)
        return -eta * max(-1.0, min(1.0, mu * self.m / math.sqrt(self.v))) if self.v else 0.0


@pytest.mark.parametrize("meta", METAS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("base", ["SGDm", "Lion", "AdamW"])
@pytest.mark.parametrize(("gamma", "kappa"), [(1.0, 0.0), (0.99, 0.1)])
def test_it_is_algorithm_3(base, meta, gamma, kappa):
    parts = {
        "SGDm": {"rule": Momentum(0.9), "direction": Gradient()},
        "Lion": {"rule": Momentum(0.9, nesterov=True)},  # sign(.9·m + .1·g), the Linf norm's dual
        "AdamW": {"rule": Adam(), "direction": Gradient()},
    }[base]
    w, H, lr = Parameter(gaussian(6)), psd(6, 1), 0.01
    constraint = Decay(kappa) if kappa else Free()
    opt = alone(w, step=MetaOptimize(meta, gamma=gamma, decay=kappa), lr=lr, constraint=constraint, **parts)
    x, h, m, v = w.detach().clone(), *(torch.zeros(3, 6, dtype=torch.float64)).unbind()
    beta, update = math.log(lr), Meta(meta)
    for t in range(1, 40):
        noise = 0.1 * gaussian(6, seed=t)
        w.grad = H @ w.detach() + noise
        opt.step()
        g, alpha = H @ x + noise, math.exp(beta)
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g.square()
        u = {
            "SGDm": m,
            "Lion": (0.9 * m + 0.1 * g).sign(),
            "AdamW": math.sqrt(1 - 0.99**t) / (1 - 0.9**t) * m / (v.sqrt() + 1e-12),
        }[base]
        beta = beta + update(float(h @ g))
        delta = -alpha * u - kappa * alpha * x
        h = gamma * (1 - kappa * alpha) * h + delta
        x = x + delta
        torch.testing.assert_close(w.detach(), x, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(opt.state[w]["step.h"], h, rtol=1e-6, atol=1e-9)


# ---- blocks


def network():
    torch.manual_seed(0)
    return (ng.nn.Linear(6, 3) @ ng.nn.Gain(6) @ ng.nn.Linear(4, 6)).double()


def train(opt, net, n, x, y):
    for _ in range(n):
        opt.zero_grad()
        (net(x) - y).square().mean().backward()
        opt.step()


@pytest.mark.parametrize("blocks", ["group", "role", "leaf", "row", "weight", "function"])
def test_blocks_share_a_step_size(blocks):
    """Every weight's β follows the sum of h·g over its block, and Δw is the unit step times its own exp β."""
    net, rate = network(), 0.05
    how = (lambda leaf: leaf.name[0]) if blocks == "function" else blocks
    plan = ng.compile(net)
    opt = plan.optimizer(net, step=MetaOptimize(MetaSGD(rate), blocks=how), rule=Plain(), lr=0.1)
    leaves, x, y = {leaf.name: leaf for leaf in plan.leaves}, gaussian(16, 4), gaussian(16, 3, seed=1)
    beta = {n: torch.zeros_like(w) for n, w in net.named_parameters()}
    h = {n: torch.zeros_like(w) for n, w in net.named_parameters()}

    def shared(z):
        if blocks == "weight":
            return z
        if blocks == "row":
            return {n: v.sum(1, keepdim=True) if v.ndim == 2 else v for n, v in z.items()}
        label = {
            "group": lambda n: 0,
            "role": lambda n: leaves[n].role,
            "leaf": lambda n: n,
            "function": lambda n: n[0],
        }
        name = label[blocks]
        return {n: sum(v.sum() for k, v in z.items() if name(k) == name(n)) for n in z}

    for _ in range(12):
        before = {n: w.detach().clone() for n, w in net.named_parameters()}
        train(opt, net, 1, x, y)
        g = {n: w.grad for n, w in net.named_parameters()}
        z = shared({n: h[n] * g[n] for n in g})
        for n, w in net.named_parameters():
            u = leaves[n].radius * leaves[n].norm.dualize(g[n])
            torch.testing.assert_close(w.detach() - before[n], -0.1 * beta[n].exp() * u, rtol=1e-6, atol=1e-10)
            beta[n] = beta[n] - rate * z[n]
            h[n] = h[n] + (w.detach() - before[n])
    assert len({float(b.flatten()[0]) for b in beta.values()}) == (
        1 if blocks == "group" else 2 if blocks == "role" else 3
    )


# ---- the exact forms, and what is dropped from them


class Exact:
    """Algorithm 2, the 2×2 form with its Hessian, for gradient descent on ½wᵀHw + c_tᵀw. Y₀ = 0 and γY + 1 - γ where print
    has Y₀ = 1 and Y (X4-1, X4-2); with `fixed` Y = 1: the L form, and with γ = 1 the trace in use."""

    def __init__(self, H, w, eta, gamma, fixed=False, alpha=0.2, hessian=1.0):
        self.H, self.w, self.eta, self.gamma, self.hessian = H, w, eta, gamma, hessian
        self.trace, self.Y, self.fixed = torch.zeros_like(w), 1.0 if fixed else 0.0, fixed
        self.beta, self.traces = torch.tensor(math.log(alpha), dtype=w.dtype), []

    def step(self, c):
        self.traces.append(self.trace)
        g, alpha, H = self.H @ self.w + c, self.beta.exp(), self.hessian * self.H
        weight = self.Y if self.fixed else self.gamma * self.Y + 1 - self.gamma
        trace = self.gamma * (self.trace - alpha * H @ self.trace) - weight * alpha * g
        if not self.fixed:
            self.Y = weight - self.gamma * self.eta * self.trace @ H @ self.trace
        self.w, self.beta, self.trace = self.w - alpha * g, self.beta - self.eta * self.trace @ g, trace


def unrolled(shifts, H, w, c, eta, traces, alpha=0.2):
    """The last w if β is shifted by shifts[t] at step t, the traces held fixed (what the 2×2 form neglects)."""
    beta = torch.tensor(math.log(alpha), dtype=w.dtype)
    for shift, at, trace in zip(shifts, c, traces, strict=True):
        beta, g = beta + shift, H @ w + at
        w, beta = w - beta.exp() * g, beta - eta * trace @ g
    return w


@given(seeds)
def test_the_2_by_2_form_is_the_derivative_by_autograd(seed):
    """H_T = (1-γ)·Σ γ^(T-t-1) dw_T/dβ_t, with the meta rate at work; γ = 1 makes the definition 0 (X4-1)."""
    H, c, w = psd(4, seed), gaussian(8, 4, seed=seed + 1), gaussian(4, seed=seed + 2)
    for gamma in (0.9, 1.0):
        exact = Exact(H, w, 0.01, gamma)
        for at in c:
            exact.step(at)
        J = torch.func.jacrev(unrolled)(torch.zeros(8, dtype=w.dtype), H, w, c, 0.01, exact.traces)
        discount = (1 - gamma) * gamma ** torch.arange(7.0, -1.0, -1.0, dtype=w.dtype)
        torch.testing.assert_close(exact.trace, J @ discount)
        assert bool(exact.trace.any()) == (gamma < 1)


@given(seeds)
def test_the_trace_in_use_is_the_derivative_in_a_shift_of_all_step_sizes(seed):
    """The L form with Y = 1, γ = 1: dw_T/dβ for one β of all steps; without its Hessian terms it is ours, and on a linear
    loss, where there are none, ours is exact."""
    H, c, w = psd(4, seed), gaussian(8, 4, seed=seed + 1), gaussian(4, seed=seed + 2)
    for curvature in (H, 0 * H):
        exact, free = (Exact(curvature, w, 0.0, 1.0, fixed=True, hessian=k) for k in (1.0, 0.0))
        p = Parameter(w.clone())
        opt = alone(p, step=MetaOptimize(MetaSGD(1e-30)), rule=Plain(), direction=Gradient(), lr=0.2)
        for at in c:
            exact.step(at)
            free.step(at)
            p.grad = curvature @ p.detach() + at
            opt.step()
        ours = opt.state[p]["step.h"]
        J = torch.func.jacrev(unrolled)(torch.zeros(8, dtype=w.dtype), curvature, w, c, 0.0, exact.traces)
        torch.testing.assert_close(exact.trace, J[:, 0])  # a shift at step 0 stays
        torch.testing.assert_close(ours, free.trace)
        if not curvature.any():
            torch.testing.assert_close(ours, J[:, 0])


def test_dropping_the_hessian_keeps_the_sign_of_the_derivative_for_small_steps():
    """z of the exact trace and of ours along 40 noiseless steps on bowls: of one sign in 97 % and more at α = .1/L."""
    agree = 0
    for seed in range(20):
        H, w = psd(6, seed), gaussian(6, seed=seed + 50)
        small = 0.1 / float(torch.linalg.eigvalsh(H)[-1])
        both = [Exact(H, w, 0.0, 1.0, fixed=True, alpha=small, hessian=k) for k in (1.0, 0.0)]
        for _ in range(40):
            for it in both:
                it.step(torch.zeros(6, dtype=w.dtype))
            z = [float(it.trace @ H @ it.w) for it in both]
            agree += z[0] * z[1] > 0
    assert agree >= 0.97 * 800


# ---- known facts


@pytest.mark.parametrize("meta", [MetaLion(0.01), MetaAdam(0.01)], ids=lambda m: type(m).__name__)
@given(seed=seeds)
def test_beta_moves_by_its_rate_at_most(meta, seed):
    memory = {name: torch.zeros((), dtype=torch.float64) for name in meta.names}
    scale = 10.0 ** torch.randint(-8, 9, (60,), generator=torch.Generator().manual_seed(seed)).double()
    z = gaussian(60, seed=seed) * scale
    changes = torch.stack([meta.change(z[t], memory, torch.tensor(t + 1.0)) for t in range(60)])
    assert changes.abs().max() <= 0.01 * (1 + 1e-12)


def test_on_a_slope_a_thousand_steps_are_a_factor_e():
    """The gain per step is the rate exactly: z is negative from the second step on. Adam and Lion alike."""
    for meta in (MetaAdam(1e-2), MetaLion(1e-2)):
        w, c = Parameter(gaussian(6)), gaussian(6, seed=1)
        opt = alone(w, step=MetaOptimize(meta), rule=Plain(), lr=1e-6)
        for _ in range(102):
            w.grad = c.clone()
            opt.step()
        assert float(opt.state[w]["shared.beta"]) == pytest.approx(
            1.01 if isinstance(meta, MetaLion) else 1.0, rel=0.05
        )


@pytest.mark.parametrize("meta", [MetaLion(0.02), MetaAdam(0.02)], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("blocks", ["group", "leaf"])
def test_from_far_too_small_and_too_large_it_finds_its_way(meta, blocks):
    x, y = gaussian(16, 4), gaussian(16, 3, seed=1)
    for lr, up in ((1e-4, True), (3.0, False)):
        net, constant = network(), network()
        opt = ng.optimizer(net, step=MetaOptimize(meta, blocks), rule=Plain(), lr=lr)
        train(opt, net, 250, x, y)
        train(ng.optimizer(constant, rule=Plain(), lr=lr), constant, 250, x, y)
        key = "shared.beta" if blocks == "group" else "step.beta"
        moved = [float(opt.state[w][key].max() if up else opt.state[w][key].min()) for w in net.parameters()]
        assert max(moved) > 2 if up else min(moved) < -1
        assert (net(x) - y).square().mean() < 0.8 * (constant(x) - y).square().mean()


def test_a_schedule_may_multiply_it():
    """h follows what was written, so the derivative stays right: with a schedule of 0 nothing moves and β stays."""
    net = network()
    opt = ng.optimizer(net, step=Linear(2) * MetaOptimize(MetaLion(0.1)), rule=Plain(), lr=0.01)
    train(opt, net, 2, gaussian(8, 4), gaussian(8, 3, seed=1))
    still = [w.detach().clone() for w in net.parameters()]
    train(opt, net, 3, gaussian(8, 4), gaussian(8, 3, seed=1))
    assert all(torch.equal(w, b) for w, b in zip(net.parameters(), still, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MetaOptimize(blocks="layer"), "blocks must be one of"),
        (lambda: MetaOptimize(gamma=1.1), r"gamma in \[0, 1\]"),
        (lambda: MetaOptimize(decay=-1.0), "decay ≥ 0"),
        (lambda: MetaAdam(rate=0.0), "rate must be a finite number > 0"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
