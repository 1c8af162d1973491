"""What the commands and examples run: text, training, checkpoints, comparisons and reports."""

from normgeo.lab.budget_costs import COSTS, closed_forms, completions, directions, waterfill
from normgeo.lab.budget_training import UPKEEP_COLUMNS, training_study, upkeep
from normgeo.lab.budgets import (
    CLAIM_COLUMNS,
    REFERENCE,
    WINNER_COLUMNS,
    Claim,
    Place,
    Race,
    Races,
    Way,
    claim,
    horizons,
    landscapes,
    race,
    ways,
)
from normgeo.lab.checkpoint import load_checkpoint, save_checkpoint, write_whole
from normgeo.lab.contenders import Contender, adamw, contenders, muon, operated, ours
from normgeo.lab.corpus import Corpus, standard_library, text_file
from normgeo.lab.errors import Diverged, UserError
from normgeo.lab.landscapes import Factors, Landscape, Network, Quadratic, Rosenbrock, curvature
from normgeo.lab.ledger import Ledger
from normgeo.lab.model_studies import model_studies
from normgeo.lab.models import Pictures, ResNet18, TransformerText
from normgeo.lab.problems import Classes, Classify, Problem, Score, Settings, Text, evaluate, labelled_file
from normgeo.lab.quality import Comparison, Parabola, Sources, Study, Transfer, studies
from normgeo.lab.report import plot_budgets, plot_losses, summary
from normgeo.lab.speed import Accuracy, Timing, accuracies, time_steps
from normgeo.lab.speed_report import accuracy_table, plot_speed, speed_table
from normgeo.lab.training import Curve, Training
from normgeo.lab.trials import Entry, Outcome, Trial, Trials

__all__ = [
    "CLAIM_COLUMNS",
    "COSTS",
    "REFERENCE",
    "UPKEEP_COLUMNS",
    "WINNER_COLUMNS",
    "Accuracy",
    "Claim",
    "Classes",
    "Classify",
    "Comparison",
    "Contender",
    "Corpus",
    "Curve",
    "Diverged",
    "Entry",
    "Factors",
    "Landscape",
    "Ledger",
    "Network",
    "Outcome",
    "Parabola",
    "Pictures",
    "Place",
    "Problem",
    "Quadratic",
    "Race",
    "Races",
    "ResNet18",
    "Rosenbrock",
    "Score",
    "Settings",
    "Sources",
    "Study",
    "Text",
    "Timing",
    "Training",
    "Transfer",
    "TransformerText",
    "Trial",
    "Trials",
    "UserError",
    "Way",
    "accuracies",
    "accuracy_table",
    "adamw",
    "claim",
    "closed_forms",
    "completions",
    "contenders",
    "curvature",
    "directions",
    "evaluate",
    "horizons",
    "labelled_file",
    "landscapes",
    "load_checkpoint",
    "model_studies",
    "muon",
    "operated",
    "ours",
    "plot_budgets",
    "plot_losses",
    "plot_speed",
    "race",
    "save_checkpoint",
    "speed_table",
    "standard_library",
    "studies",
    "summary",
    "text_file",
    "time_steps",
    "training_study",
    "upkeep",
    "waterfill",
    "ways",
    "write_whole",
]
