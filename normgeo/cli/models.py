"""`normgeo bench models`: the same for models as others wrote them."""

from normgeo import lab
from normgeo.cli.studies import studying

__all__ = ["models"]

models = studying(
    "models",
    lambda: lab.model_studies(),
    "Train GPT-2, Llama and a plain ResNet-18 as they are, at the default learning rate, beside AdamW and "
    "Muon tuned on grids, and measure whether the best learning rate of the language models moves with width and depth.",
    pictures=True,
)
