"""Writes docs/models.md: `python docs/generate_models.py`, from the models that the tests compile."""

import logging
import math
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import torch

import normgeo as ng

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import models

STARTS, ITERATIONS = 20, 4
TARGET = Path(__file__).with_name("models.md")


def row(factory):
    """Name, leaves, roles, assumed operations and seconds of one model."""
    model, args, kwargs = models.made(factory)
    start = time.perf_counter()
    plan = ng.compile(model, args, kwargs)
    seconds = time.perf_counter() - start
    roles = ", ".join(f"{count} {role}" for role, count in Counter(leaf.role for leaf in plan.leaves).most_common())
    assumed = ", ".join(f"{name} ({times})" for name, times in plan.assumed.items()) or "none"
    return [
        factory.__name__,
        str(len(plan.leaves)),
        roles.replace("embedding, head", "tied embedding"),
        assumed,
        f"{seconds:.1f}",
    ]


def promise(factory):
    """Name, what tracing assumes, seconds, the largest ‖JΔ‖ found for ‖Δ‖ ≤ 1 with traced and with measured sensitivities
    and the decades that the bound of a leaf alone exceeds what a search finds: of the plan, and the median of leaves."""
    found, seconds, assumed = {}, 0.0, ""
    for how, starts in (("traced", STARTS), ("measured", STARTS // 2)):
        model, args, kwargs = in_float64(factory)
        start = time.perf_counter()
        plan = ng.compile(model, args, kwargs, sensitivity=how)
        if how == "traced":
            seconds, traced = time.perf_counter() - start, plan
            assumed = ", ".join(f"{name} ({times})" for name, times in plan.assumed.items()) or "none"
        options = {"plan": plan, "starts": starts, "iterations": ITERATIONS, "tolerance": 1e-4}
        found[how] = ng.testing.check_geometry(model, args, kwargs, **options)
    model, args, kwargs = in_float64(factory)
    lower = ng.geometry.measure(model, traced.leaves, traced.find(model), args, kwargs, axis=traced.axis, draws=1)
    bound = [leaf for leaf in traced.leaves if leaf.known == "bound" and lower.products[leaf.name] > 0]
    loose = statistics.median(math.log10(1 / leaf.reach / lower.products[leaf.name]) for leaf in bound)
    return [
        factory.__name__,
        assumed,
        f"{seconds:.1f}",
        f"{found['traced']:.3g}" if assumed == "none" else f"{found['traced']:.3g}, assumed",
        f"{-math.log10(found['traced']):.1f}",
        f"{loose:.1f}",
        f"{found['measured']:.2f}",
    ]


def in_float64(factory):
    """A model and its arguments; mixtral as it is, since grouped_mm has no float64."""
    model, args, kwargs = models.made(factory)
    if factory is models.mixtral:
        return model, args, kwargs

    def cast(x):
        return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    return model.double(), tuple(map(cast, args)), {name: cast(x) for name, x in kwargs.items()}


def page():
    rows = [row(factory) for factory in [*models.PLAIN, *models.TRANSFORMERS]]
    head = ["model", "leaves", "roles", "assumed operations", "seconds"]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---", "---:", "---", "---", "---:"], *rows))
    return TEXT.format(table=table)


TEXT = """# Models that compile as they are

Made by `python docs/generate_models.py` on one core. Sizes are tiny and weights random; tests/models.py has the models, the
ones at the top in plain torch and those from gpt2 on from transformers 5, and tests/roles.py the roles that a person gave
their weights. `normgeo explain MODULE:FACTORY` prints such a plan for yours.

{table}
"""

if __name__ == "__main__":
    logging.disable()
    TARGET.write_text(page(), encoding="utf-8")
