"""What a step size rule costs, on a GPT of width 128: `pytest -m slow tests/test_step_overhead.py -s` prints the table of
docs/results.md. Nothing is asserted about time."""

import statistics
import time

import pytest
import torch

import normgeo as ng
from normgeo import steps
from normgeo.optim import BEMA, EMA, ScheduleFree
from normgeo.rules import TunedMomentum

CASES = {
    "Constant": {},
    "Linear": {"step": steps.Linear(1000)},
    "Majorize": {"step": steps.Majorize(10.0)},
    "AdaGradNorm": {"step": steps.AdaGradNorm()},
    "AdamNorm": {"step": steps.AdamNorm()},
    "Polyak": {"step": steps.Polyak(most=0.1)},
    "Escape": {"step": steps.Escape()},
    "Auto": {"step": steps.Auto(1000)},
    "Prodigy": {"step": steps.Prodigy()},
    "Prodigy, every 10": {"step": steps.Prodigy(every=10)},
    "Hypergradient": {"step": steps.Hypergradient()},
    "MetaOptimize": {"step": steps.MetaOptimize()},
    "MetaOptimize, leaf": {"step": steps.MetaOptimize(blocks="leaf")},
    "IDBD": {"step": steps.IDBD(1e-4)},
    "Secant, every 10": {"step": steps.Secant()},
    "Cauchy, every 10": {"step": steps.Cauchy()},
    "TunedMomentum": {"rule": TunedMomentum()},
    "EMA": {"iterate": EMA()},
    "BEMA": {"iterate": BEMA()},
    "ScheduleFree": {"iterate": ScheduleFree()},
}
ROUNDS = 30


def trial(options):
    torch.manual_seed(0)
    model = ng.nn.GPT(vocab_size=65, context=64, width=128, heads=4, depth=4)
    opt = ng.optimizer(model, lr=0.01, **options)
    ids = torch.randint(65, (32, 65))

    def closure(backward=True):
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        if backward:
            loss.backward()
        return loss

    graph = "Cauchy" in repr(options.get("step"))
    return lambda: opt.step(lambda: closure(not graph))


@pytest.mark.slow
def test_overhead(capsys):
    """CPU time of whole steps (forward, backward, update), all cases in turn so that a busy machine is busy for all."""
    trials = {name: trial(options) for name, options in CASES.items()}
    spent = {name: [] for name in trials}
    for round in range(ROUNDS + 1):
        for name, step in trials.items():
            start = time.process_time()
            step()
            if round:
                spent[name].append(time.process_time() - start)
    base = spent["Constant"]
    with capsys.disabled():
        print()
        for name, its in spent.items():
            mean = [sum(chunk) for chunk in zip(*[iter(its)] * 10, strict=True)]  # rules that act every tenth step
            zero = [sum(chunk) for chunk in zip(*[iter(base)] * 10, strict=True)]
            ratio = statistics.median(a / b for a, b in zip(mean, zero, strict=True))
            print(f"| {name} | {1e3 * statistics.median(its):.1f} | {100 * (ratio - 1):+.1f} % |")
    assert all(len(its) == ROUNDS for its in spent.values())
