"""Writes docs/models.md from the models that the tests compile: `python docs/generate_models.py`. Other architectures are
compiled anew with --more (a minute), GPT-2 of 124 million weights with --large (minutes, 6 GB); else their parts stay."""

import argparse
import logging
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch

import normgeo as ng

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import architectures
import models

TARGET = Path(__file__).with_name("models.md")
PARTS = ("## Other architectures", "## GPT-2 of 124 million weights")


def row(name, model, args, kwargs, **options):
    """Name, leaves, roles, assumed operations and seconds of one model."""
    start = time.perf_counter()
    plan = ng.compile(model, args, kwargs, **options)
    seconds = time.perf_counter() - start
    roles = ", ".join(f"{count} {role}" for role, count in Counter(leaf.role for leaf in plan.leaves).most_common())
    assumed = ", ".join(f"{name} ({times})" for name, times in plan.assumed.items()) or "none"
    return [name, str(len(plan.leaves)), roles.replace("embedding, head", "tied embedding"), assumed, f"{seconds:.1f}"]


def table(head, rows):
    rule = ["---:" if name in ("leaves", "seconds", "GB") else "---" for name in head]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def listed():
    ng.compile(*models.mlp()[:2])  # what torch loads on first use is not the first model's
    rows = [row(factory.__name__, *models.made(factory)) for factory in [*models.PLAIN, *models.TRANSFORMERS]]
    return LISTED.format(table=table(["model", "leaves", "roles", "assumed operations", "seconds"], rows))


def others():
    rows = []
    for name, (factory, options) in architectures.ARCHITECTURES.items():
        needs = ", ".join(f"`{key}={value!r}`" for key, value in options.items())
        *cells, _ = row(name, *factory(), **options)
        rows.append([*cells, needs])
    head = ["model", "leaves", "roles", "assumed operations", "needs"]
    return OTHERS.format(
        heading=PARTS[0], table=table(head, rows), count=len(rows), told=sum(bool(r[-1]) for r in rows)
    )


STEPS = ("load", "pass", "structure", "traced", "measured")


def step(what):
    """One of STEPS in a process of its own, since the largest memory of a process never falls: seconds and gigabytes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model, ids = GPT2LMHeadModel(GPT2Config()), torch.randint(50257, (1, 128))
    start = time.process_time()
    if what == "pass":
        model(input_ids=ids, use_cache=False).logits.logsumexp(-1).sum().backward()
    elif what != "load":
        ng.compile(model, (ids,), sensitivity="declared" if what == "structure" else what)
    print(time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def large():
    rows, memory = [], {}
    for what in STEPS:
        command = [sys.executable, __file__, "--step", what]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        memory[what] = float(out[1])
        ratio = f"{memory[what] / memory['pass']:.2f}" if "pass" in memory else ""
        rows.append([LARGE_STEPS[what], f"{float(out[0]):.1f}", f"{memory[what]:.1f}", ratio])
    head = ["", "seconds", "GB", "of a forward and backward"]
    return LARGE.format(heading=PARTS[1], table=table(head, rows))


def kept(part):
    """A part of the page as it is."""
    text = TARGET.read_text(encoding="utf-8")
    if part not in text:
        return ""
    start = text.index(part)
    ends = [text.index(other) for other in PARTS if other in text and text.index(other) > start]
    return text[start : min(ends, default=len(text))].strip() + "\n"


def page(more=False, measure=False):
    parts = (listed(), others() if more else kept(PARTS[0]), large() if measure else kept(PARTS[1]))
    return "\n".join(filter(None, parts))


LISTED = """# Models that compile as they are

Made by `python docs/generate_models.py` on one core. Sizes are tiny and weights random; tests/models.py has the models, the
ones at the top in plain torch and those from gpt2 on from transformers 5, and tests/roles.py the roles that a person gave
their weights. `normgeo explain MODULE:FACTORY` prints such a plan for yours, `normgeo explain transformers:gpt2` and
`timm:resnet18` for a model of these libraries. How the default learning rate trains such models, and that it serves all
widths and depths, is in the [results](results.md#models-as-they-are).

{table}
"""
OTHERS = """{heading}

Made by `python docs/generate_models.py --more`, from tests/architectures.py: {count} other architectures of transformers 5,
tiny and random. Those that need an option are refused without it, by a sentence that says what to write: {told} of them. A
parameter that is called unused has no radius. Nobody has checked these roles weight by weight.

{table}
"""
LARGE_STEPS = {
    "load": "the model itself",
    "pass": "forward and backward of 128 tokens",
    "structure": "`ng.compile(model, (ids,))`",
    "traced": '`ng.compile(model, (ids,), sensitivity="traced")`',
    "measured": '`ng.compile(model, (ids,), sensitivity="measured")`: 32 backwards',
}
LARGE = """{heading}

Made by `OMP_NUM_THREADS=1 python docs/generate_models.py --large` on an AMD EPYC, each line in a process of its own.
Seconds are those of the processor, since other work ran beside it; memory is the largest that the process held, torch
itself included.

{table}
"""

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--more", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--step", choices=STEPS)
    given = parser.parse_args()
    logging.disable()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if given.step:
        step(given.step)
    else:
        TARGET.write_text(page(given.more, given.large), encoding="utf-8")
