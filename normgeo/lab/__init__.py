"""What the commands and examples run: text, training, checkpoints, comparisons and reports."""

from normgeo.lab.checkpoint import load_checkpoint, save_checkpoint, write_whole
from normgeo.lab.contenders import Contender, contenders
from normgeo.lab.corpus import Corpus, standard_library, text_file
from normgeo.lab.errors import UserError
from normgeo.lab.report import plot_losses, summary
from normgeo.lab.speed import Accuracy, Timing, accuracies, time_steps
from normgeo.lab.speed_report import accuracy_table, plot_speed, speed_table
from normgeo.lab.training import Curve, Settings, Training, evaluate

__all__ = [
    "Accuracy",
    "Contender",
    "Corpus",
    "Curve",
    "Settings",
    "Timing",
    "Training",
    "UserError",
    "accuracies",
    "accuracy_table",
    "contenders",
    "evaluate",
    "load_checkpoint",
    "plot_losses",
    "plot_speed",
    "save_checkpoint",
    "speed_table",
    "standard_library",
    "summary",
    "text_file",
    "time_steps",
    "write_whole",
]
