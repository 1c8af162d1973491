"""What the commands and examples run: text, training, checkpoints, comparisons and reports."""

from normgeo.lab.checkpoint import load_checkpoint, save_checkpoint, write_whole
from normgeo.lab.contenders import Contender, adamw, contenders, muon, ours
from normgeo.lab.corpus import Corpus, standard_library, text_file
from normgeo.lab.errors import Diverged, UserError
from normgeo.lab.problems import Classes, Classify, Problem, Score, Settings, Text, evaluate, labelled_file
from normgeo.lab.quality import Comparison, Parabola, Sources, Study, Transfer, studies
from normgeo.lab.report import plot_losses, summary
from normgeo.lab.speed import Accuracy, Timing, accuracies, time_steps
from normgeo.lab.speed_report import accuracy_table, plot_speed, speed_table
from normgeo.lab.training import Curve, Training
from normgeo.lab.trials import Entry, Outcome, Trial, Trials

__all__ = [
    "Accuracy",
    "Classes",
    "Classify",
    "Comparison",
    "Contender",
    "Corpus",
    "Curve",
    "Diverged",
    "Entry",
    "Outcome",
    "Parabola",
    "Problem",
    "Score",
    "Settings",
    "Sources",
    "Study",
    "Text",
    "Timing",
    "Training",
    "Transfer",
    "Trial",
    "Trials",
    "UserError",
    "accuracies",
    "accuracy_table",
    "adamw",
    "contenders",
    "evaluate",
    "labelled_file",
    "load_checkpoint",
    "muon",
    "ours",
    "plot_losses",
    "plot_speed",
    "save_checkpoint",
    "speed_table",
    "standard_library",
    "studies",
    "summary",
    "text_file",
    "time_steps",
    "write_whole",
]
