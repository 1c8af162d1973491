"""`normgeo explain`: the plan of a model, on paper."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import click
from torch import nn

import normgeo
from normgeo.lab import UserError
from normgeo.lab.named import LIBRARIES, named_model

__all__ = ["explain"]


@click.command()
@click.argument("model", metavar="MODULE:FACTORY")
@click.option("--output", multiple=True, help="Which tensor of what the model gives counts, by name or position.")
@click.option("--strict", is_flag=True, help="Refuse operations without a rule.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, which normgeo.Plan.from_json reads.")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
@click.option("--role", "roles", multiple=True, metavar="PATTERN=ROLE", help="What a parameter is used as, or unused.")
@click.option("--config", multiple=True, metavar="KEY=VALUE", help="Of a model by name: in place of its default.")
@click.option("--tiny", is_flag=True, help="Of a model by name: two layers of any kind, and narrower.")
@click.option("--device", default="cpu", show_default=True, help="Of a model by name; meta has no values, and no size.")
@click.option("--why", metavar="LEAF", help="Tell of one leaf what it is, and through what a change of it passes.")
def explain(
    model: str,
    output: tuple[str, ...],
    strict: bool,
    as_json: bool,
    markdown: bool,
    roles: tuple[str, ...],
    config: tuple[str, ...],
    tiny: bool,
    device: str,
    why: str | None,
) -> None:
    """Print the plan of the model that FACTORY in MODULE makes.

    The factory takes no arguments and returns the model, or (model, args) or (model, args, kwargs) with an example input;
    only models made of modules that declare their geometry can do without one.

    transformers:gpt2, transformers:GPT2LMHeadModel and timm:resnet18 name models of these libraries, with random weights
    in the default configuration.
    """
    place, _, name = model.partition(":")
    kwargs: Mapping[str, Any] | None
    if place in LIBRARIES:
        values = {key: _value(value) for key, value in map(_pair, config)}
        network, args, kwargs = named_model(place, name, values, tiny=tiny, device=device)
    else:
        network, args, kwargs = _made(model)
    wanted = None if not output else output[0] if len(output) == 1 else output
    told = dict(map(_pair, roles)) or None
    try:
        plan = normgeo.compile(network, args, kwargs, output=wanted, roles=told, strict=strict)
        text = plan.why(why) if why else plan.to_json() if as_json else plan.to_text(markdown)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    click.echo(text)


def _pair(given: str) -> tuple[str, str]:
    key, equals, value = given.partition("=")
    if not equals:
        raise UserError(f"{given!r} has no =; write KEY=VALUE")
    return key, value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _made(model: str) -> tuple[nn.Module, Any, Mapping[str, Any] | None]:
    place, _, name = model.partition(":")
    kwargs: Mapping[str, Any] | None
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
