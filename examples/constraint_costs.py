"""What a constraint costs: processor time of an optimizer step with it, over the plain step (momentum, dualize, write).

`python examples/constraint_costs.py 128 20` takes width and rounds; the least of all rounds counts.
"""

import sys
import time

import torch

import normgeo as ng
from normgeo.constraints import (
    Ball,
    Decay,
    FrankWolfe,
    Free,
    HardCap,
    Normalize,
    Oblique,
    RowCap,
    SoftCap,
    SpectralDecay,
    SpectralHammer,
    Sphere,
    Stiefel,
)

width, rounds = (int(text) for text in sys.argv[1:3]) if sys.argv[2:3] and sys.argv[1].isdigit() else (16, 2)
parts = [Free(), Decay(0.1), FrankWolfe(2.0), RowCap(1.0), Oblique(), Sphere(1.0, frobenius=True), SoftCap(2.0)]
parts += [SpectralHammer(2.0), SpectralDecay(0.1), HardCap(2.0), Normalize(2.0), Ball(2.0), Sphere(1.0), Stiefel()]

torch.manual_seed(0)
torch.set_num_threads(1)
runs = []
for part in parts:
    model = ng.nn.GPT(vocab_size=65, context=64, width=width, heads=4, depth=2)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    runs.append((part, ng.optimizer(model, lr=0.01, constraint=part)))

least = dict.fromkeys(parts, float("inf"))
for _ in range(rounds):  # in turn, so that all see the same machine
    for part, opt in runs:
        start = time.process_time()
        opt.step()
        least[part] = min(least[part], time.process_time() - start)

plain = least[Free()]
print(f"plain step of a GPT of width {width}: {1000 * plain:.1f} ms on one thread")
for part in parts:
    print(f"{part!s:55}  {least[part] / plain:6.2f}")
