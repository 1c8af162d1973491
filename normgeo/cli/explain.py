"""`normgeo explain`: the plan of a model, on paper."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

import click
from torch import nn

import normgeo
from normgeo.lab import UserError

__all__ = ["explain"]


@click.command()
@click.argument("model", metavar="MODULE:FACTORY")
@click.option("--output", help="Which tensor of what the model gives counts, by name or position.")
@click.option("--strict", is_flag=True, help="Refuse operations without a rule.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, which normgeo.Plan.from_json reads.")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
@click.option("--why", metavar="LEAF", help="Tell of one leaf what it is, and through what a change of it passes.")
def explain(model: str, output: str | None, strict: bool, as_json: bool, markdown: bool, why: str | None) -> None:
    """Print the plan of the model that FACTORY in MODULE makes.

    The factory takes no arguments and returns the model, or (model, args) or (model, args, kwargs) with an example input;
    only models made of modules that declare their geometry can do without one.
    """
    network, args, kwargs = _made(model)
    try:
        plan = normgeo.compile(network, args, kwargs, output=output, strict=strict)
        text = plan.why(why) if why else plan.to_json() if as_json else plan.to_text(markdown)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    click.echo(text)


def _made(model: str) -> tuple[nn.Module, Any, Mapping[str, Any] | None]:
    place, _, name = model.partition(":")
    if not name:
        raise UserError(f"{model!r} names no factory; write MODULE:FACTORY, as in normgeo explain mymodels:make_gpt")
    sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(place), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{model}: {error}") from error
    made = factory()
    parts = made if isinstance(made, tuple) else (made,)
    if not isinstance(parts[0], nn.Module) or len(parts) > 3:
        raise UserError(f"{model} must return a torch.nn.Module, (model, args) or (model, args, kwargs)")
    network, args, kwargs = (*parts, None, None)[:3]
    return network, args, kwargs or None
