"""Which momentum a norm wants: a character GPT whose hidden matrices have one norm after another.

`python examples/momentum_by_norm.py TEXT 64 200` takes a text, a width and a number of steps. First, by how the gradients
of a run at the default agree with themselves (lag curves): S[k]/S[0] and the momentum β* that `rules.best_momentum` makes
of them, with and without their mean, by role. Then, by training: for every norm the best lr of a factor-2 grid at β = .9,
and there the validation losses of other β.
"""

import sys
from pathlib import Path

import torch

import normgeo as ng
from normgeo import lab
from normgeo.lab.contenders import Many
from normgeo.lab.sweep import grid
from normgeo.rules import LagCurve, Momentum, best_momentum

torch.set_num_threads(1)
given = sys.argv[1:4] if sys.argv[3:4] and sys.argv[3].isdigit() else None
width, steps, betas = (int(given[1]), int(given[2]), (0.5, 0.8, 0.9, 0.95, 0.98)) if given else (16, 10, (0.8, 0.9))
sizes = {"context": 64, "batch": 16} if given else {"context": 8, "batch": 4}
settings = lab.Settings(width=width, depth=2, steps=steps, warmup=min(20, steps // 5), **sizes)
corpus = (
    lab.text_file(Path(given[0])) if given else lab.Corpus.from_bytes("numbers", bytes(range(50)) * 9, bytes(range(50)))
)
problem = lab.Text(settings, corpus)
schedule = ng.steps.Linear(steps, settings.warmup)

side = width**0.5  # an orthogonal matrix then has norm 1 in the first two, and about 1 in the others
norms = {
    "RMS→RMS (spectral)": ng.norms.RMSToRMS(),
    "Frobenius": (1 / side) * ng.norms.Frobenius(),
    "largest entry (sign)": side * ng.norms.L1ToLinf(),
    "largest row": ng.norms.RMSToLinf(),
}


def train(norm, lr, beta, watch=lambda model: None):
    """Validation loss."""

    def make(model):
        plan = ng.compile(model, norms={"blocks.*": norm})
        return Many(plan.optimizer(model, lr=lr, rule=Momentum(beta, nesterov=True), step=schedule))

    training = lab.Training(lab.Contender("normgeo", f"lr {lr:g}", make), problem, torch.device("cpu"))
    clear = training.optimizer.zero_grad
    training.optimizer.zero_grad = lambda: (watch(training.model), clear())
    try:
        while not training.done:
            training.advance()
    except lab.Diverged:
        return float("inf")
    return training.curve.validation[-1]


curves = {center: LagCurve(lags=30, memory=0.99, center=center) for center in (False, True)}
roles = {leaf.parameter: leaf.role for leaf in ng.compile(problem.model()).leaves}
states = {}


def watch(model):
    for name, p in model.named_parameters():
        for center, curve in curves.items():
            if p.grad is not None:
                g = p.grad.reshape(1, -1)[:, :: -(-p.numel() // 4096)]
                curve.update(g, states.setdefault((name, center), curve.init(g)))


print(f"{problem.name}, {steps} steps, lr .2: {train(norms['RMS→RMS (spectral)'], 0.2, 0.9, watch):.4f}")
for role in dict.fromkeys(roles.values()):
    names = [name for name in roles if roles[name] == role]
    read = {c: torch.cat([curves[c].read(states[name, c]) for name in names]) for c in curves}
    shown = (read[False] / read[False][:, :1]).mean(0)
    best = [f"{float(best_momentum(read[c])[0].median()):.2f}" for c in curves]
    print(f"{role:10} S[k]/S[0] at k = 1, 5, 20: {', '.join(f'{float(shown[k]):.3f}' for k in (1, 5, 20))};", end=" ")
    print(f"β* {best[0]}, centred {best[1]}")

for name, norm in norms.items():
    found = {}
    while todo := [lr for lr in grid(0.4, found.get) if lr not in found]:
        found |= {lr: train(norm, lr, 0.9) for lr in todo}
    lr = min(found, key=found.get)
    losses = {beta: found[lr] if beta == 0.9 else train(norm, lr, beta) for beta in betas}
    print(f"{name:22} lr {lr:<6g}", "  ".join(f"β {b:g}: {loss:.4f}" for b, loss in losses.items()), flush=True)
