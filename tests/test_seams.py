"""The seams are in the right place if known optimizers plug in without a change to the optimizer. Throwaway versions,
each held against a plain computation of its formula."""

import copy

import pytest
import torch
from helpers import gaussian
from torch import nn

import normgeo as ng
from normgeo.constraints import Constraint
from normgeo.optim import Direction, Iterate
from normgeo.rules import Momentum, Plain, Rule
from normgeo.steps import StepSize
from normgeo.testing import check_optimizer


def power(A, p):
    values, vectors = torch.linalg.eigh(A)
    return (vectors * values.clamp_min(1e-12).pow(p).unsqueeze(-2)) @ vectors.mT


class Shampoo(Direction):
    """D = L^-1/4 M R^-1/4 with L = Σ GGᵀ, R = Σ GᵀG."""

    def init(self, W):
        n, a, b = W.shape
        return {"L": torch.zeros(n, a, a).to(W), "R": torch.zeros(n, b, b).to(W)}

    def observe(self, G, state, stats):
        state["L"] = state["L"] + G @ G.mT
        state["R"] = state["R"] + G.mT @ G

    def __call__(self, M, state, W):
        return power(state["L"], -0.25) @ M @ power(state["R"], -0.25)


class SOAP(Direction):
    """Adam's second moment in the eigenbasis of Shampoo: D = U (UᵀMV / √v̂) Vᵀ, β₂ with bias correction."""

    beta = 0.95

    def init(self, W):
        n, a, b = W.shape
        zeros = {"L": torch.zeros(n, a, a), "R": torch.zeros(n, b, b), "v": torch.zeros(n, a, b), "t": torch.zeros(n)}
        return {name: x.to(W) for name, x in zeros.items()}

    def observe(self, G, state, stats):
        state["L"].lerp_(G @ G.mT, 1 - self.beta)
        state["R"].lerp_(G.mT @ G, 1 - self.beta)
        U, V = (torch.linalg.eigh(state[side])[1] for side in "LR")
        state["v"].lerp_((U.mT @ G @ V).square(), 1 - self.beta)
        state["t"].add_(1)

    def __call__(self, M, state, W):
        U, V = (torch.linalg.eigh(state[side])[1] for side in "LR")
        v = state["v"] / (1 - self.beta ** state["t"].reshape(-1, 1, 1))
        return U @ (U.mT @ M @ V / (v.sqrt() + 1e-12)) @ V.mT


class ScheduleFree(Iterate):
    """Gradients at y = (1-β) z + β x;  z ← z - η D;  x ← (1 - 1/t) x + z/t.  The weights are y, to evaluate is x."""

    beta = 0.9

    def init(self, W):
        return {"z": W.clone(), "x": W.clone(), "t": torch.zeros(len(W)).to(W)}

    def write(self, W, D, eta, state):
        state["t"].add_(1)
        state["z"].sub_(eta * D)
        state["x"] += (state["z"] - state["x"]) / state["t"].reshape((-1,) + (1,) * (W.ndim - 1))
        return (1 - self.beta) * state["z"] + self.beta * state["x"]

    def average(self, W, state):
        return state["x"]


class MetaOptimize(StepSize):
    """Scalar, Hessian-free, γ = 1: z = Σ h·g, β ← β - η Adam(z), α = exp β, h ← h + Δw."""

    needs = {"moves": 1, "updates": 1}  # noqa: RUF012

    def __init__(self, start=1e-3, eta=1e-2):
        self.start, self.eta = start, eta

    def init(self, W):
        return {"h": torch.zeros_like(W)}

    def init_shared(self):
        return {"beta": float(torch.tensor(self.start, dtype=torch.float64).log()), "m": 0.0, "v": 0.0}

    def value(self, stats, state):
        z = sum((leaf["h"] * move.G).sum() for leaf, move in zip(state.leaves, stats.moves, strict=True)).double()
        s, t = state.shared, stats.count.double() + 1
        s["m"], s["v"] = 0.9 * s["m"] + 0.1 * z, 0.999 * s["v"] + 0.001 * z * z
        step = (s["m"] / (1 - 0.9**t)) / ((s["v"] / (1 - 0.999**t)).sqrt() + 1e-30)
        s["beta"] = s["beta"] - self.eta * step
        return s["beta"].exp()

    def follow(self, moves, state):
        for leaf, move in zip(state.leaves, moves, strict=True):
            leaf["h"] += move.update


class Sophia(Direction):
    """D = clip(M / max(γ h, ε), ρ), h an average of Hutchinson's u ⊙ Hu every k steps."""

    needs = {"hvp": 3}  # noqa: RUF012

    def init(self, W):
        return {"h": torch.zeros_like(W)}

    def observe(self, G, state, stats):
        if stats.hvp is not None:
            u = gaussian(*G.shape, seed=int(stats.count)).to(G).sign()
            state["h"].lerp_(u * stats.hvp(u), 0.5)

    def __call__(self, M, state, W):
        return (M / state["h"].clamp_min(1e-6)).clamp(-1, 1)


class Sphere(Constraint):
    """Every leaf stays at the Frobenius norm it started with; gradients lose their radial part."""

    def init(self, W):
        return {"radius": W.flatten(1).norm(dim=1)}

    def tangent(self, W, G, state):
        axes = tuple(range(1, W.ndim))
        return G - W * (G * W).sum(axes, keepdim=True) / W.square().sum(axes, keepdim=True)

    def retract(self, W, old, rate, state):
        size = W.flatten(1).norm(dim=1)
        return W * (state["radius"] / size).reshape((-1,) + (1,) * (W.ndim - 1))


def model():
    torch.manual_seed(0)
    return ng.nn.Sequential(
        up=ng.nn.Linear(4, 6), act=ng.nn.ReLU(), down=ng.nn.Linear(6, 6), head=ng.nn.Linear(6, 3)
    ).double()


X, Y = gaussian(16, 4), gaussian(16, 3, seed=1)


def loss(net):
    return (net(X) - Y).square().mean()


def steps(opt, net, n):
    for _ in range(n):
        opt.zero_grad()
        loss(net).backward()
        opt.step()


PARTS = {
    "Shampoo": {"direction": Shampoo(), "rule": Plain(), "lr": 0.1},
    "SOAP": {"direction": SOAP(), "rule": Momentum(0.9), "lr": 0.1},
    "schedule-free": {"iterate": ScheduleFree(), "rule": Plain()},
    "MetaOptimize": {"step": MetaOptimize(), "rule": Plain(), "lr": 1.0},
    "sphere": {"constraint": Sphere()},
    "all at once": {
        "direction": Shampoo(),
        "iterate": ScheduleFree(),
        "step": MetaOptimize(),
        "constraint": Sphere(),
        "lr": 1.0,
    },
}


@pytest.mark.parametrize("name", PARTS)
def test_foreign_parts_keep_the_contract(name):
    """Checkpoints, copies, NaN and lr = 0 work for state that the optimizer has never heard of."""
    check_optimizer(lambda net: ng.optimizer(net, **PARTS[name]), model(), loss, effort="quick")
    net = model()
    start = loss(net)
    steps(ng.optimizer(net, **{**PARTS[name]}), net, 30)
    assert loss(net) < start


def by_hand(net, opt, update, n=5):
    """Run opt on net, and on its twin `update(name, w, g, t)` for every weight; they must agree."""
    twin, radius = copy.deepcopy(net), {leaf.name: leaf.radius for leaf in ng.compile(net).leaves}
    for t in range(n):
        steps(opt, net, 1)
        twin.zero_grad()
        loss(twin).backward()
        with torch.no_grad():
            for name, w in twin.named_parameters():
                w.copy_(update(name, w.detach(), w.grad, t, radius[name]))
    for (name, a), b in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)


def test_shampoo_equals_its_formula():
    L, R = {}, {}

    def update(name, w, g, t, r):
        L[name] = L.get(name, 0) + g @ g.mT
        R[name] = R.get(name, 0) + g.mT @ g
        return w - 0.1 * r * power(L[name], -0.25) @ g @ power(R[name], -0.25)

    net = model()
    by_hand(net, ng.optimizer(net, direction=Shampoo(), rule=Plain(), lr=0.1), update)


def test_shampoo_without_memory_is_the_polar_factor():
    g = gaussian(1, 4, 4)
    state = Shampoo().init(g)
    Shampoo().observe(g, state, None)
    torch.testing.assert_close(Shampoo()(g, state, None), ng.linalg.SVD()(g), rtol=1e-6, atol=1e-6)


def test_soap_without_rotation_is_adam():
    """With L and R diagonal the eigenbasis is a permutation: Adam with bias correction on v alone."""
    direction, v = SOAP(), torch.zeros(1, 3, 3, dtype=torch.float64)
    state = direction.init(v)
    for t in range(4):
        g = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64) * (t + 1)).unsqueeze(0)
        direction.observe(g, state, None)
        v = 0.95 * v + 0.05 * g.square()
        expected = g / ((v / (1 - 0.95 ** (t + 1))).sqrt() + 1e-12)
        torch.testing.assert_close(direction(g, state, None), expected, rtol=1e-9, atol=1e-9)


def test_schedule_free_evaluates_the_average():
    net = model()
    opt = ng.optimizer(net, iterate=ScheduleFree(), rule=Plain(), lr=0.3)
    start = {name: w.detach().clone() for name, w in net.named_parameters()}
    z, x = dict(start), dict(start)

    def update(name, w, g, t, r):
        leaf = next(leaf for leaf in ng.compile(net).leaves if leaf.name == name)
        z[name] = z[name] - 0.3 * r * leaf.norm.dualize(g)
        x[name] = x[name] + (z[name] - x[name]) / (t + 1)
        return 0.1 * z[name] + 0.9 * x[name]

    by_hand(net, opt, update)
    training = [w.detach().clone() for w in net.parameters()]
    with opt.averaged():
        for name, w in net.named_parameters():
            torch.testing.assert_close(w.detach(), x[name])
    assert all(torch.equal(w, y) for w, y in zip(net.parameters(), training, strict=True))


def test_metaoptimize_finds_its_step_size_and_moves_it_slowly():
    net = model()
    opt = ng.optimizer(net, step=MetaOptimize(start=1e-4, eta=0.05), rule=Plain(), lr=1.0)
    betas = []
    for _ in range(150):
        steps(opt, net, 1)
        betas.append(float(opt.state[net.up.weight]["shared.beta"]))
    assert betas[-1] > betas[0] + 2  # up from a hundredfold too small
    changes = torch.tensor(betas).diff().abs()
    assert changes.max() <= 0.05 * 3.2  # Adam's step is at most (1-β₁)/√(1-β₂) = 3.16
    h = opt.state[net.up.weight]["step.h"]
    torch.testing.assert_close(h, net.up.weight.detach() - model().up.weight.detach())


def test_shared_state_of_a_skipped_step_is_undone_on_the_device(monkeypatch):
    from normgeo.optim.guard import Guard

    monkeypatch.setattr(Guard, "deferred", staticmethod(lambda finite: True))
    net = model()
    opt = ng.optimizer(net, step=MetaOptimize(), rule=Plain(), lr=1.0)
    steps(opt, net, 3)
    before = {key: float(opt.state[net.up.weight][key]) for key in ("step", "shared.beta", "shared.m", "shared.v")}
    loss(net).backward()
    net.up.weight.grad[0, 0] = torch.nan
    opt.step()
    assert {key: float(opt.state[net.up.weight][key]) for key in before} == before
    with pytest.warns(RuntimeWarning, match="up.weight"):
        assert opt.skipped == 1


def test_sophia_sees_hessian_vector_products_every_third_step():
    """On a quadratic in each weight the block Hessian is known: autograd's dense one is the oracle."""
    net = model()
    seen = []

    class Watching(Sophia):
        def observe(self, G, state, stats):
            if stats.hvp is not None:
                V = gaussian(*G.shape, seed=3)
                seen.append((int(stats.count), V, stats.hvp(V)))
            super().observe(G, state, stats)

    opt = ng.optimizer(net, direction=Watching(), rule=Plain(), lr=0.01)
    before = copy.deepcopy(net)
    for _ in range(5):
        opt.step(lambda: loss(net))
    assert sorted({count for count, _, _ in seen}) == [0, 3]
    _, V, HV = next(entry for entry in seen if entry[1].shape[1:] == (6, 6))

    def of_down(w):
        return (torch.func.functional_call(before, {"down.weight": w}, (X,)) - Y).square().mean()

    H = torch.autograd.functional.hessian(of_down, before.down.weight.detach())
    torch.testing.assert_close(HV[0], torch.einsum("ijkl,kl->ij", H, V[0]))


def test_what_a_part_needs_is_supplied_or_refused():
    net = model()
    opt = ng.optimizer(net, direction=Sophia(), rule=Plain())
    with pytest.raises(ValueError, match=r"write|opt\.step\(closure\)"):
        opt.step()

    def calls_backward():
        value = loss(net)
        value.backward()
        return value

    with pytest.raises(ValueError, match="do not call backward"):
        opt.step(calls_backward)

    class Kronecker(Direction):
        needs = {"activations": 1}  # noqa: RUF012

        def __call__(self, M, state, W):
            return M

    with pytest.raises(ValueError, match=r"direction Kronecker needs \['activations'\], but this optimizer supplies"):
        ng.optimizer(net, direction=Kronecker())


class Polyak(StepSize):
    """η = loss / ‖g‖*, for a loss whose least value is 0."""

    needs = {"loss": 1, "moves": 1}  # noqa: RUF012

    def value(self, stats, state):
        return stats.loss / stats.dual_norm


def test_a_step_size_sees_the_loss_and_the_dual_norm_of_the_network():
    net = model()
    plan = ng.compile(net)
    opt = plan.optimizer(net, step=Polyak(), rule=Plain(), lr=1.0, precision="exact")
    before = {name: w.detach().clone() for name, w in net.named_parameters()}

    def closure():
        opt.zero_grad()
        value = loss(net)
        value.backward()
        return value

    value = opt.step(closure)
    g = {name: w.grad for name, w in net.named_parameters()}
    change = {name: w.detach() - before[name] for name, w in net.named_parameters()}
    torch.testing.assert_close(plan.norm(change), value.detach() / plan.dual_norm(g), rtol=1e-6, atol=0)


def test_a_size_per_leaf():
    class PerLeaf(StepSize):
        needs = {"moves": 1}  # noqa: RUF012

        def value(self, stats, state):
            return [torch.arange(len(move.G)).to(move.G) for move in stats.moves]

    net = ng.nn.Sequential(*(ng.nn.Linear(3, 3) for _ in range(3)))
    before = [w.detach().clone() for w in net.parameters()]
    opt = ng.optimizer(net, step=PerLeaf(), lr=0.1, precision="exact")
    net(gaussian(2, 3, dtype=torch.float32)).square().sum().backward()
    opt.step()
    sizes = [float(torch.linalg.svdvals(w.detach() - b)[0]) for w, b in zip(net.parameters(), before, strict=True)]
    assert sizes == pytest.approx([0.0, 0.1 / 3, 0.2 / 3], abs=1e-6)


def test_the_throwaway_parts_are_short():
    import inspect

    for part in (Shampoo, SOAP, ScheduleFree, MetaOptimize, Sophia, Sphere):
        assert len(inspect.getsource(part).splitlines()) <= 30
        assert issubclass(part, Direction | Iterate | StepSize | Constraint | Rule)
        assert not issubclass(part, nn.Module)
