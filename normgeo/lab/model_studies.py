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


def _adamw(*lrs: float, warmup: int = WARMUP) -> list[Entry]:
    return [Entry.of("adamw", lr=lr, warmup=warmup) for lr in lrs]


def _muon(*lrs: float, rest: float) -> list[Entry]:
    return [Entry.of("muon", lr=lr, lr_rest=rest) for lr in lrs]


OURS = [Entry.of("ours", lr=lr) for lr in (0.1, 0.2, 0.4)]
ADAMW = _adamw(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
LANGUAGE = {
    "AdamW": [*ADAMW, *_adamw(4e-3, 8e-3, 1.6e-2, warmup=80)],
    "Muon + AdamW": [*_muon(0.01, 0.02, 0.04, 0.08, 0.16, rest=4e-3), *_muon(0.04, 0.08, rest=1e-2)],
}
PICTURES = {
    "AdamW": ADAMW,
    "Muon + AdamW": [
        *_muon(0.0075, 0.015, 0.03, 0.06, 0.12, rest=3e-3),
        *_muon(0.03, rest=1e-2),
        *_muon(0.03, rest=1e-3),
    ],
}


def model_studies() -> dict[str, Study]:
    """The studies of `normgeo bench models`."""
    out: dict[str, Study] = {}
    for model, sizes in SIZES.items():
        ours = {"normgeo": [Entry.of("ours", lr=0.2)], "normgeo, Auto": [Entry.of("auto", lr=0.2)]}
        field = {**ours, **(LANGUAGE if model in FAMILIES else PICTURES)}
        out[model] = Comparison(f"{sizes}, each at its best on seed 0", [sizes], field, "validation")
    for family in FAMILIES:
        widths = [f"{family} width {width} depth 2 batch 16 steps {SHORT}" for width in WIDTHS]
        depths = [f"{family} width 64 depth {depth} batch 16 steps {SHORT}" for depth in DEPTHS]
        for name, problems in (("width", widths), ("depth", depths)):
            title = f"{family}: one learning rate for every {name}, {SHORT} steps"
            out[f"{family}-{name}"] = Transfer(title, problems, {"normgeo": OURS})
            out[f"{family}-{name}-adamw"] = Transfer(title, [problems[0], problems[-1]], {"AdamW": ADAMW})
    return out
