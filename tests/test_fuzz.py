"""Random networks, dtypes, wirings, freezes, group edits, bad gradients and restarts: weights stay finite, no weight moves
further than its radius allows, and a run that is interrupted goes on to the bit.
"""

import copy
import io
import math
import warnings
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import normgeo as ng
from normgeo.constraints import Ball, Decay, Free
from normgeo.rules import HeavyBall, Momentum, Plain
from normgeo.steps import Cosine, Escape, Linear, Warmup
from normgeo.testing.probe import Probe
from normgeo.testing.subject import same, same_state, weights

DONE = Counter()
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SIDES = st.integers(1, 5)
SHAPES = st.one_of(st.just(()), st.tuples(SIDES), st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES, SIDES))
GRADIENTS = st.sampled_from(["gaussian", "gaussian", "gaussian", "rank 1", "zero", "one entry"])
EVENTS = st.sampled_from(
    [
        "nothing",
        "nothing",
        "nothing",
        "freeze",
        "unfreeze",
        "lr",
        "restart",
        "restart",
        "no gradient",
        "nan",
        "inf",
        "grow",
    ]
)


@dataclass(frozen=True)
class Case:
    shapes: list
    dtypes: list
    rule: object
    constraint: object
    step: object
    lr: float
    policy: str
    late: bool
    """whether the last weight comes to the optimizer later, as a group of its own"""


CASES = st.builds(
    Case,
    st.lists(SHAPES, min_size=2, max_size=4),
    st.lists(st.sampled_from(DTYPES), min_size=4, max_size=4),
    st.sampled_from([Plain(), Momentum(0.9), Momentum(0.95, nesterov=True), HeavyBall(0.9)]),
    st.sampled_from([Free(), Decay(0.1), Ball(1.0)]),
    st.sampled_from([Cosine(50), Linear(30, warmup=2), Warmup(3) * Cosine(40), Escape(start=0.1)]),
    st.sampled_from([0.01, 0.1, 1.0, 3.0]),
    st.sampled_from(["skip", "skip", "zero"]),
    st.booleans(),
)
TURNS = st.lists(
    st.tuples(EVENTS, st.integers(0, 3), GRADIENTS, st.integers(-12, 12), st.integers(0, 2**31)), min_size=4, max_size=9
)


class Run:
    """A network and its optimizer, with the gradients that it is given."""

    def __init__(self, case):
        self.case, self.late = case, case.late
        self.model = Probe({str(i): shape for i, shape in enumerate(case.shapes)})
        for weight, dtype in zip(self.model.weights.values(), case.dtypes, strict=False):
            weight.data = weight.data.to(dtype)
        self.plan = ng.compile(self.model)
        self.optimizer = self.make()

    def make(self):
        names = [f"weights.{i}" for i in range(len(self.case.shapes) - self.late)]
        case = self.case
        return self.plan.optimizer(
            self.plan.groups(model=self.model, only=names),
            lr=case.lr,
            rule=case.rule,
            constraint=case.constraint,
            step=case.step,
            nonfinite=case.policy,
        )

    def grow(self):
        (group,) = self.plan.groups(model=self.model, only=[f"weights.{len(self.case.shapes) - 1}"])
        self.optimizer.add_param_group({**group, "lr": self.case.lr / 2})
        self.late = False

    def restart(self):
        """Through a file, into a network and an optimizer that are new."""
        file = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "opt": self.optimizer.state_dict()}, file)
        file.seek(0)
        saved, frozen = torch.load(file, weights_only=True), [p.requires_grad for p in self.model.parameters()]
        again = Run(self.case)
        again.model.load_state_dict(saved["model"])
        for p, trained in zip(again.model.parameters(), frozen, strict=True):
            p.requires_grad_(trained)
        if self.case.late and not self.late:
            again.grow()
        again.optimizer.load_state_dict(saved["opt"])
        self.model, self.plan, self.optimizer, self.late = again.model, again.plan, again.optimizer, again.late

    def turn(self, event, which, kind, power, seed):
        """One thing that happens, gradients, and a step."""
        params = list(self.model.parameters())
        p = params[which % len(params)]
        if event in ("freeze", "unfreeze"):
            p.requires_grad_(event == "unfreeze")
        elif event == "lr":
            self.optimizer.param_groups[0]["lr"] = self.case.lr * (1 + which) / 4
        elif event == "grow" and self.late:
            self.grow()
        draw = torch.Generator().manual_seed(seed)
        for q in params:
            q.grad = gradient(q, kind, 10.0**power, draw) if q.requires_grad else None
        if event == "no gradient":
            p.grad = None
        elif event in ("nan", "inf") and p.grad is not None:
            p.grad.view(-1)[0] = float(event)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            self.optimizer.step()


def gradient(p, kind, size, draw):
    g = torch.randn(p.shape, generator=draw, dtype=torch.float64)
    if kind == "zero":
        g.zero_()
    elif kind == "rank 1" and p.ndim >= 2:
        g = g.mean(0, keepdim=True) * torch.ones_like(g)
    elif kind == "one entry":
        g.view(-1)[1:] = 0
    return (size * g).to(p.dtype)


def reach(run, before):
    """name -> the furthest that this step may move the weight, in its norm."""
    inside = {q for group in run.optimizer.param_groups for q in group["params"]}
    params = dict(run.model.named_parameters())
    moving = [leaf for leaf in run.plan.leaves if params[leaf.name].requires_grad and params[leaf.name] in inside]
    mass = sum(leaf.mass for leaf in moving)
    out = {}
    for leaf in moving:
        group = next(g for g in run.optimizer.param_groups if any(q is params[leaf.name] for q in g["params"]))
        old = before[leaf.name].double()
        size = float(leaf.norm.norm(old))
        # The largest that the step size may be: schedules are at most 1, Escape is bounded by what it has seen.
        shared = [float(x) for key, x in run.optimizer.state[params[leaf.name]].items() if key == "shared.eta"]
        eta = float(group["lr"]) * max([1.0, *shared])
        radius = eta * leaf.mass / mass * leaf.reach
        more = {Free: 0.0, Decay: eta * 0.1 * size, Ball: radius + max(0.0, size - 1.0)}[type(run.case.constraint)]
        rounding = torch.finfo(before[leaf.name].dtype).eps * (old.abs().max() + radius) * torch.ones_like(old)
        out[leaf.name] = (leaf, 1.01 * radius + more + 4 * float(leaf.norm.norm(rounding)) + 1e-6 * size)
    return out


@pytest.mark.slow
@settings(max_examples=2000, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(CASES, TURNS)
def test_two_thousand_random_runs(case, turns):
    explore(case, turns)


@settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(CASES, TURNS)
def test_some_random_runs(case, turns):
    explore(case, turns)


def explore(case, turns):
    straight, broken = Run(case), Run(case)
    bad_steps = 0
    for event, which, *gradients in turns:
        before = weights(straight.model)
        state = copy.deepcopy(straight.optimizer.state_dict()["state"])
        straight.turn(event, which, *gradients)
        if event == "restart":
            broken.restart()
        broken.turn(event, which, *gradients)
        after = weights(straight.model)
        assert all(w.isfinite().all() for w in after.values()), "a weight is not finite"
        params = dict(straight.model.named_parameters())
        inside = {q for group in straight.optimizer.param_groups for q in group["params"]}
        bad = [n for n, q in params.items() if q in inside and q.grad is not None and not q.grad.isfinite().all()]
        bad_steps += bool(bad) and case.policy == "skip"
        for name, q in params.items():
            stays = q not in inside or q.grad is None or name in bad or (bad and case.policy == "skip")
            assert not stays or torch.equal(before[name], after[name]), f"{name} moves in {event}"
        if bad and case.policy == "skip":
            now = straight.optimizer.state_dict()["state"]
            assert all(same_state(kept, now[p][key]) for p in state for key, kept in state[p].items())
        for name, (leaf, most) in reach(straight, before).items():
            change = after[name].double() - before[name].double()
            assert float(leaf.norm.norm(change)) <= most, f"{name} moves {leaf.norm.norm(change)}, allowed are {most}"
        DONE.update([event, "steps"])
    assert straight.optimizer.skipped == bad_steps
    assert same(weights(straight.model), weights(broken.model)), "the interrupted run goes elsewhere"
    mine, theirs = (run.optimizer.state_dict()["state"] for run in (straight, broken))
    assert same_state(mine, theirs), "the state of the interrupted run is another"
    assert math.isfinite(straight.plan.mass)
    DONE["runs"] += 1


@pytest.mark.slow
def test_what_the_random_runs_did():
    print(dict(DONE))
    assert DONE["runs"] >= 2000
