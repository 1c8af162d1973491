"""Names of parameters, whatever wraps the model."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Mapping

from torch import nn
from torch.nn import Parameter

__all__ = ["aliases", "canonical", "find", "named_parameters", "some"]

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def canonical(name: str) -> str:
    """A parameter's name without what DataParallel, torch.compile, FSDP and activation checkpointing put in it.

    >>> canonical("module._orig_mod.blocks.0._checkpoint_wrapped_module.up.weight")
    'blocks.0.up.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def named_parameters(model: nn.Module) -> dict[str, Parameter]:
    """Canonical name -> parameter, each parameter once, under its first name."""
    out: dict[str, Parameter] = {}
    for name, parameter in model.named_parameters():
        short = canonical(name)
        if short in out:
            raise ValueError(
                f"two parameters are called {short} once wrappers are stripped ({name} is one); rename a module"
            )
        out[short] = parameter
    return out


def aliases(model: nn.Module) -> dict[str, Parameter]:
    """Every canonical name -> parameter, tied ones under all their names."""
    return {canonical(name): p for name, p in model.named_parameters(remove_duplicate=False)}


def find(
    names: Collection[str],
    identity: Mapping[str, weakref.ref[Parameter]],
    unused: Collection[str],
    model: nn.Module | None,
) -> dict[str, Parameter]:
    """The model's parameters of these names or, where names have changed, those that `identity` remembers. The model has no
    other trainable ones; `unused` are frozen ones that nobody asks for. Without a model, those that are remembered."""
    remembered = {name: p for name, ref in identity.items() if (p := ref()) is not None}
    if model is None:
        if len(remembered) < len(names):
            raise ValueError("this plan does not hold a model (it was loaded, or its model is gone); pass model=model")
        return remembered
    by_name, inside = aliases(model), {id(p) for p in model.parameters()}
    found: dict[str, Parameter] = {}
    for name in names:
        parameter = by_name.get(name)
        if parameter is None and name in remembered and id(remembered[name]) in inside:
            parameter = remembered[name]
        if parameter is None:
            raise ValueError(f"the model has no parameter {name}; compile the plan again for this model")
        found[name] = parameter
    known = {id(p) for p in found.values()}
    others = {name: p for name, p in named_parameters(model).items() if id(p) not in known}
    if unknown := [name for name, p in others.items() if p.requires_grad or name not in unused]:
        raise ValueError(f"the plan does not know {some(unknown)}; write plan = plan.extend(model)")
    return found


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names, for messages."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
