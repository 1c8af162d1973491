"""Writes docs/models.md: `python docs/generate_models.py`, from the models that the tests compile."""

import logging
import sys
import time
from collections import Counter
from pathlib import Path

import normgeo as ng

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import models

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


def page():
    rows = [row(factory) for factory in [*models.PLAIN, *models.TRANSFORMERS]]
    head = ["model", "leaves", "roles", "assumed operations", "seconds"]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---", "---:", "---", "---", "---:"], *rows))
    return TEXT.format(table=table)


TEXT = """# Models that compile as they are

Made by `python docs/generate_models.py` on one core. Sizes are tiny and weights random; tests/models.py has the models, the
ones at the top in plain torch and those from gpt2 on from transformers 5, and tests/roles.py the roles that a person gave
their weights. `normgeo explain MODULE:FACTORY` prints such a plan for yours. How the default learning rate trains such models,
and that it serves all widths and depths, is in the [results](results.md#models-as-they-are).

{table}
"""

if __name__ == "__main__":
    logging.disable()
    TARGET.write_text(page(), encoding="utf-8")
