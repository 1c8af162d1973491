"""Names of parameters, whatever wraps the model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn import Parameter

__all__ = ["aliases", "canonical", "named_parameters", "some"]

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


def some(names: Iterable[str], limit: int = 5) -> str:
    """The first few names, for messages."""
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
