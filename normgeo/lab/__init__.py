"""What the commands and examples run: text, training, checkpoints, comparisons and reports."""

from normgeo.lab.checkpoint import load_checkpoint, save_checkpoint, write_whole
from normgeo.lab.contenders import Contender, contenders
from normgeo.lab.corpus import Corpus, standard_library, text_file
from normgeo.lab.errors import UserError
from normgeo.lab.report import plot_losses, summary
from normgeo.lab.training import Curve, Settings, Training, evaluate

__all__ = [
    "Contender",
    "Corpus",
    "Curve",
    "Settings",
    "Training",
    "UserError",
    "contenders",
    "evaluate",
    "load_checkpoint",
    "plot_losses",
    "save_checkpoint",
    "standard_library",
    "summary",
    "text_file",
    "write_whole",
]
