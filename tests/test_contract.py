"""The contract of a torch optimizer: ours meets it in every wiring, and the suite finds who does not."""

import copy

import pytest
import torch
from torch import nn
from wirings import WIRINGS, Wiring
from wirings import group as group_of

import normgeo as ng
from normgeo.testing import check_optimizer, examine_optimizer
from normgeo.testing.probe import SHAPES, Probe, probe_loss
from normgeo.testing.subject import weights

REFUSED = {
    "sparse gradients, or a refusal that says so",
    "complex weights, or a refusal that says so",
    "maximize climbs, or is refused by name",
    "foreach=True works or is refused by name",
    "fused=True works or is refused by name",
    "differentiable=True works or is refused by name",
    "an optimizer of meta weights works there, or says that it cannot",
}


def names(report, verdict):
    return {finding.clause for finding in report.findings if finding.verdict == verdict}


def test_ours_meets_the_contract():
    report = examine_optimizer(Wiring().make, group=group_of)
    assert not report.failures, str(report)
    assert names(report, "refused") == REFUSED
    assert report.count("met") >= 60


EXCEPT = {
    "Stored": {"the state of bfloat16 weights is float32"},  # which is what it is for
    "Sphere": {"0-D weights"},  # the sphere of a number is two points, and no small step leads from one to the other
    'nonfinite="zero"': {
        "a NaN or Inf leaves weights and state as they were"
    },  # it leaves out the weight concerned only
}


@pytest.mark.slow
@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_wiring_meets_the_contract(wiring):
    report = examine_optimizer(WIRINGS[wiring].make, **WIRINGS[wiring].asks())
    assert names(report, "failed") == EXCEPT.get(wiring, set()), str(report)


@pytest.mark.slow
def test_ours_compiles_and_goes_to_another_process():
    check_optimizer(Wiring().make, group=group_of, effort="slow")


def test_no_part_is_left_out_of_the_wirings():
    wired = {type(part).__name__ for w in WIRINGS.values() for part in w.options.values()}
    for room, base in (
        ("rules", ng.rules.Rule),
        ("constraints", ng.constraints.Constraint),
        ("steps", ng.steps.StepSize),
    ):
        module = getattr(ng, room)
        parts = {
            n for n in module.__all__ if isinstance(getattr(module, n), type) and issubclass(getattr(module, n), base)
        }
        abstract = {"Rule", "Constraint", "Pull", "StepSize", "Schedule", "Annealed"}
        made_from_others = {"Free", "Product", "Table", "Warmup"}
        assert parts - wired - abstract - made_from_others <= set(), room


# ---- strangers


NAN = {"a NaN or Inf leaves weights and state as they were", "a NaN is reported with the weight's name"}
KEPT = "the state of bfloat16 weights is float32"
MATRICES_ONLY = {f"{n} weights" for n in SHAPES if n != "2-D"} | {
    "weights of 0 to 5 axes together resume",
    "channels_last weights stay so and move as others do",
}
STRANGERS = {
    "AdamW": (NAN | {KEPT, "float16 weights move, stay finite and resume to the bit"}, True),
    "SGD": (NAN | {KEPT, "lr=nan is refused"}, False),
    "Muon": (NAN | {KEPT} | MATRICES_ONLY, True),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_torchs_own_optimizers_fail_only_where_they_do(name):
    expected, decays = STRANGERS[name]
    more = {"momentum": 0.9} if name == "SGD" else {}

    def make(model, **options):
        return getattr(torch.optim, name)(model.parameters(), **{"lr": 0.01, **more, **options})

    report = examine_optimizer(make, decays=decays)
    assert names(report, "failed") == expected, str(report)


class Broken(torch.optim.SGD):
    """Meets the contract but for one thing."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, lr=lr, momentum=0.9)

    def rewrite(self, change):
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    change(p, group["lr"])


class Silent(Broken):
    def step(self, closure=None):
        return None if closure is None else torch.enable_grad()(closure)()


class Restless(Broken):
    def step(self, closure=None):
        out = super().step(closure)
        self.rewrite(lambda p, lr: p.mul_(0.999))
        return out


class Eater(Broken):
    def step(self, closure=None):
        out = super().step(closure)
        self.rewrite(lambda p, lr: p.grad is None or p.grad.zero_())
        return out


class Sneak(Broken):
    """Moves weights behind autograd's back."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.sub_(float(group["lr"]) * p.grad)


class Forgetful(Broken):
    def state_dict(self):
        return {**super().state_dict(), "state": {}}


class Stubborn(Broken):
    """Keeps the lr that it was made with."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = group.setdefault("first", float(group["lr"]))
        return super().step(closure)


class Thawed(Broken):
    """Remembers gradients, and moves what has none."""

    def step(self, closure=None):
        out = super().step(closure)
        self.rewrite(lambda p, lr: p.sub_(float(lr) * self.state.get(p, {}).get("momentum_buffer", 0)))
        return out


class Unpicklable(Broken):
    def __getstate__(self):
        return {**super().__getstate__(), "secret": lambda: None}


class Tongueless(Broken):
    def step(self, closure=None):
        super().step(closure)


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (Silent, "training moves every weight"),
        (Restless, "lr = 0 moves nothing"),
        (Restless, "zero gradients move nothing"),
        (Restless, "a step without gradients moves nothing"),
        (Restless, "distributed checkpoint: its hidden step moves nothing, and it resumes"),
        (Eater, "gradients are left as they were"),
        (Sneak, "autograd notices that weights changed"),
        (Sneak, "step(closure) returns its loss, with gradients on"),
        (Forgetful, "state_dict resumes to the bit, weights_only=True"),
        (Forgetful, "weights of 0 to 5 axes together resume"),
        (Stubborn, "lr = 0 moves nothing"),
        (Stubborn, "LinearLR sets its lr"),
        (Thawed, "a weight without gradient stands still, with its state"),
        (Thawed, "frozen later stands still, unfrozen later moves again"),
        (Unpicklable, "pickle continues to the bit"),
        (Tongueless, "step(closure) returns its loss, with gradients on"),
    ],
)
def test_the_suite_finds_what_is_broken(broken, clause):
    from normgeo.testing.clauses import CLAUSES
    from normgeo.testing.optimizer import subject

    (one,) = (each for each in CLAUSES if each.name == clause)
    honest = one.examine(subject(lambda model: Broken(model.parameters())))
    found = one.examine(subject(lambda model: broken(model.parameters())))
    assert honest.verdict == "met", str(honest)
    assert found.verdict == "failed", str(found)


def test_all_broken_clauses_are_listed_at_once():
    with pytest.raises(AssertionError, match=r"clauses are not met:\s+training moves every weight: .*\s+frozen later"):
        check_optimizer(lambda model: Silent(model.parameters()), effort="quick")


# ---- what the suite does not know of ours


def test_named_parameters_keep_their_names_through_a_checkpoint():
    model = Probe({"a": (3, 2), "b": (2, 2)})
    (one,) = ng.compile(model).groups(model=model)
    named = {**one, "params": list(model.named_parameters())}
    opt = ng.optim.Optimizer([named])
    probe_loss(model).backward()
    opt.step()
    twin = ng.optim.Optimizer([{**one, "params": list(model.named_parameters())}])
    twin.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert twin.param_groups[0]["param_names"] == ["weights.a", "weights.b"]


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ({"weight_decay": 0.1}, "weight_decay is no option here: write decay=0.1"),
        ({"momentum": 0.9}, "momentum is no option here: it is a rule; write rule="),
        ({"betas": (0.9, 0.95)}, "betas is no option here: the weight on the past is the rule's"),
        ({"maximize": True}, r"maximize is no option here: to maximize, call \(-loss\).backward"),
    ],
)
def test_torchs_options_are_refused_with_what_to_write(option, advice):
    with pytest.raises(TypeError, match=advice):
        ng.optimizer(Probe({"a": (3, 2)}), **option)


def test_weights_that_are_replaced_after_the_optimizer_are_not_silently_left_behind():
    model = Probe({"a": (3, 2)}).to("meta")
    plan = ng.compile(model)
    opt = plan.optimizer(model)
    model.to_empty(device="cpu")
    with pytest.raises(RuntimeError, match=r"on the meta device cannot move: .* plan\.optimizer\(model\)"):
        opt.step()
    model.load_state_dict(Probe({"a": (3, 2)}).state_dict())
    opt, before = plan.optimizer(model), weights(model)
    probe_loss(model).backward()
    opt.step()
    assert not torch.equal(before["weights.a"], model.weights["a"])


def train(opt, model, clip=None, scale=1.0):
    opt.zero_grad()
    (scale * probe_loss(model)).backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    opt.step()


def test_global_clipping_changes_no_step_without_memory():
    """dualize(c·g) = dualize(g): clipping cannot shorten or turn the step."""
    model, twin = (Probe({"a": (4, 3), "b": (3, 3), "c": (4,)}, torch.float64) for _ in range(2))
    opt, clipped = (ng.optimizer(m, rule=ng.rules.Plain(), precision="exact") for m in (model, twin))
    for _ in range(10):
        train(opt, model)
        train(clipped, twin, clip=1e-3)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_global_clipping_bounds_how_long_a_spike_is_remembered():
    """m ← βm + (1-β)G with gradients 1 and a single -S: m = 1 - β^k(1-β)(S+1) after k more, which points the wrong way for
    ln((1-β)(S+1))/ln(1/β) steps, 44 at S = 1000 and β = .9; clipped to S = 1 for none.
    """
    layers = [ng.nn.Gain(1), ng.nn.Gain(1)]
    opts = [ng.optimizer(layer, lr=0.01, rule=ng.rules.Momentum(0.9)) for layer in layers]
    wrong = [0, 0]
    for t in range(200):
        for i, (layer, opt) in enumerate(zip(layers, opts, strict=True)):
            layer.weight.grad = torch.tensor([-1000.0 if t == 100 else 1.0])
            if i:
                nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
            before = layer.weight.item()
            opt.step()
            wrong[i] += t >= 100 and layer.weight.item() > before
    assert wrong == [44, 0]


def test_what_a_step_size_sees_is_clipped():
    """The dual norm is that of the clipped gradient: a step size that follows it takes the shorter step."""
    model, twin = Probe({"a": (4, 3)}, torch.float64), Probe({"a": (4, 3)}, torch.float64)
    plan = ng.compile(model)
    start = weights(model)
    for m, clip in ((model, None), (twin, 1e-3)):
        train(plan.optimizer(m, lr=1.0, step=ng.steps.Majorize(100.0), rule=ng.rules.Plain()), m, clip)
    whole, short = (plan.norm({n: w - start[n] for n, w in weights(m).items()}) for m in (model, twin))
    assert short < whole
