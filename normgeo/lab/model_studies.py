"""Studies of models as they are: the default learning rate beside tuned optimizers, and whether it serves all sizes."""

from __future__ import annotations

from normgeo.lab.models import FAMILIES
from normgeo.lab.quality import Comparison, Study, Transfer
from normgeo.lab.trials import Entry

__all__ = ["model_studies"]

WARMUP = 20
SIZES = {
    "gpt2": "gpt2 width 64 depth 4 batch 16 steps 400",
    "llama": "llama width 64 depth 4 batch 16 steps 400",
    "resnet18": "resnet18 width 16 steps 200",
}
WIDTHS, DEPTHS, SHORT = (64, 128, 256), (2, 4, 8, 12), 150


def _adamw(*lrs: float) -> list[Entry]:
    return [Entry.of("adamw", lr=lr, warmup=WARMUP) for lr in lrs]


def _muon(*lrs: float, rest: float) -> list[Entry]:
    return [Entry.of("muon", lr=lr, lr_rest=rest) for lr in lrs]


TUNED: dict[str, dict[str, list[Entry]]] = {
    "gpt2": {
        "AdamW": _adamw(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
        "Muon + AdamW": _muon(0.02, 0.04, 0.08, rest=1e-2),
    },
    "llama": {
        "AdamW": _adamw(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
        "Muon + AdamW": _muon(0.02, 0.04, 0.08, rest=1e-2),
    },
    "resnet18": {
        "AdamW": _adamw(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
        "Muon + AdamW": _muon(0.03, 0.06, 0.12, rest=3e-3),
    },
}
"""Grids in which the best lr is no end."""


def model_studies() -> dict[str, Study]:
    """The studies of `normgeo bench models`."""
    out: dict[str, Study] = {}
    for model, sizes in SIZES.items():
        field = {"normgeo": [Entry.of("ours", lr=0.2)], **TUNED[model]}
        out[model] = Comparison(f"{sizes}, each at its best on seed 0", [sizes], field, "validation")
    grids = {
        "normgeo": [Entry.of("ours", lr=lr) for lr in (0.05, 0.1, 0.2, 0.4, 0.8)],
        "AdamW": _adamw(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    }
    for family in FAMILIES:
        short = f"batch 16 steps {SHORT}"
        widths = [f"{family} width {width} depth 4 {short}" for width in WIDTHS]
        depths = [f"{family} width 64 depth {depth} {short}" for depth in DEPTHS]
        out[f"{family}-width"] = Transfer(f"{family}: one learning rate for all widths", widths, grids)
        out[f"{family}-depth"] = Transfer(f"{family}: one learning rate for all depths", depths, grids)
    return out
