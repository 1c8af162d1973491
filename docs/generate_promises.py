"""Writes docs/promises.md: `python docs/generate_promises.py`, a quarter of an hour. Names of models: prints their rows."""

import argparse
import logging
import math
import os
import statistics
import sys
import time
from pathlib import Path

import torch

import normgeo as ng

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import models

TARGET = Path(__file__).with_name("promises.md")
STARTS, ITERATIONS = 20, 4
DEPTHS = (1, 2, 4, 8)


def promise(name, factory):
    """What tracing assumes, how long it takes, the largest ‖JΔ‖ found for ‖Δ‖ ≤ 1, and the decades by which the bound of a
    leaf alone exceeds what is found for it, the median over leaves; the same search for measured sensitivities."""
    model, args, kwargs = in_float64(factory)
    start = time.process_time()
    plan = ng.compile(model, args, kwargs, sensitivity="traced")
    seconds = time.process_time() - start
    found = search(model, args, kwargs, plan, STARTS)
    lower = ng.geometry.measure(model, plan.leaves, plan.find(model), args, kwargs, axis=plan.axis, draws=1)
    bounds = [leaf for leaf in plan.leaves if leaf.known == "bound" and lower.products[leaf.name] > 0]
    loose = statistics.median(math.log10(1 / leaf.reach / lower.products[leaf.name]) for leaf in bounds)
    model, args, kwargs = in_float64(factory)
    measured = search(model, args, kwargs, ng.compile(model, args, kwargs, sensitivity="measured"), STARTS // 2)
    assumed = ", ".join(f"{name} ({times})" for name, times in plan.assumed.items()) or "none"
    return [
        name,
        assumed,
        f"{seconds:.1f}",
        f"{found:.3g}",
        f"{-math.log10(found):.1f}",
        f"{loose:.1f}",
        f"{measured:.2f}",
    ]


def search(model, args, kwargs, plan, starts):
    return ng.testing.check_geometry(
        model, args, kwargs, plan=plan, starts=starts, iterations=ITERATIONS, tolerance=1e-4
    )


def in_float64(factory):
    """A model and its arguments; mixtral as it is, since grouped_mm has no float64."""
    model, args, kwargs = models.made(factory)
    if factory is models.mixtral:
        return model, args, kwargs

    def cast(x):
        return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    return model.double(), tuple(map(cast, args)), {name: cast(x) for name, x in kwargs.items()}


def deep(depth):
    return lambda: (models.GPT(depth=depth), (models.ids(),), {})


def rows(names):
    ng.compile(*models.mlp()[:2])  # what torch loads on first use is not the first model's
    each = {factory.__name__: factory for factory in [*models.PLAIN, *models.TRANSFORMERS]}
    each |= {f"gpt, {depth} deep": deep(depth) for depth in DEPTHS}
    return [promise(name, each[name]) for name in names or each]


def table(cells):
    head = ["model", "assumed", "seconds", "found, traced", "decades", "decades of a leaf", "found, measured"]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---", "---", *["---:"] * 5], *cells))


TEXT = """# Promises, searched

Made by `python docs/generate_promises.py` from the models of [models](models.md), in float64 (mixtral in float32; those of
transformers compute normalisation in float32), seconds of the processor on an AMD EPYC. The promise is ‖JΔ‖ ≤ 1 for
every change Δ of modular norm 1, to first order, at the example inputs and the initial weights.

- **found**: the largest ‖JΔ‖ of {starts} starts of the power method in the plan's own norms, {iterations} rounds each
  (half as many starts for measured sensitivities). Traced must be at most 1, measured from .2 to 1.05.
- **decades**: log₁₀ of bound over found, of the whole plan. The head is bounded tightly, and its share of the mass is
  reached whatever the depth; so for one leaf alone, the median over leaves of log₁₀ of bound over the largest ‖J_ℓᵀu‖* of
  32 backwards says more. Looser than 2 decades are gpt2, mamba and whisper, whose heads are tied to embeddings.
- **assumed**: operations without a bound. Where there are some, the plan claims none, and what is found may exceed 1.
- `ng.compile(GPT2LMHeadModel(GPT2Config()), (ids,), sensitivity="traced")`, 124 million random weights and 128 tokens,
  took 49 s of one core and 2.5 GB, 1.3 times a forward and backward (November 2026, busy). Worst cases multiply: its
  smallest radius is 1e-48.
- Measured radii have a cap of 1, and a plan whose leaves are at the cap promises less than it may use: resnet18 and lora.

{table}
"""

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", help="print the rows of these models only")
    given = parser.parse_args()
    logging.disable()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if given.models:
        print(table(rows(given.models)))
    else:
        TARGET.write_text(TEXT.format(table=table(rows([])), starts=STARTS, iterations=ITERATIONS), encoding="utf-8")
