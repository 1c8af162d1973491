"""`normgeo bench quality`: how well optimizers train, and whether one learning rate serves all sizes."""

from normgeo import lab
from normgeo.cli.studies import studying

__all__ = ["quality"]

quality = studying(
    "quality",
    lambda: lab.studies(),
    "Compare training with AdamW and Muon, and measure whether the best learning rate moves with width and depth.",
)
