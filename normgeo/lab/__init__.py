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
from normgeo.lab.models import ResNet18, ResNetPictures, TransformerText
from normgeo.lab.optima import Bowl, Logistic
from normgeo.lab.problems import Classes, Classify, Pictures, Problem, Score, Settings, Text, evaluate, labelled_file
from normgeo.lab.quality import Comparison, Parabola, Sources, Study, Transfer, studies
from normgeo.lab.report import plot_budgets, plot_losses, plot_sweep, summary
from normgeo.lab.speed import Timing, time_entrywise, time_steps, time_whole, training_share
from normgeo.lab.speed_clock import Rates, machine_rates
from normgeo.lab.speed_polars import Accuracy, PolarTiming, accuracies, time_polars
from normgeo.lab.speed_report import accuracy_table, plot_speed, polar_table, speed_table
from normgeo.lab.sweep import AGAINST, RULES, Line, Sweep
from normgeo.lab.training import Curve, Training
from normgeo.lab.trials import Entry, Outcome, Trial, Trials

__all__ = [
    "AGAINST",
    "CLAIM_COLUMNS",
    "COSTS",
    "REFERENCE",
    "RULES",
    "UPKEEP_COLUMNS",
    "WINNER_COLUMNS",
    "Accuracy",
    "Bowl",
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
    "Line",
    "Logistic",
    "Network",
    "Outcome",
    "Parabola",
    "Pictures",
    "Place",
    "PolarTiming",
    "Problem",
    "Quadratic",
    "Race",
    "Races",
    "Rates",
    "ResNet18",
    "ResNetPictures",
    "Rosenbrock",
    "Score",
    "Settings",
    "Sources",
    "Study",
    "Sweep",
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
    "machine_rates",
    "model_studies",
    "muon",
    "operated",
    "ours",
    "plot_budgets",
    "plot_losses",
    "plot_speed",
    "plot_sweep",
    "polar_table",
    "race",
    "save_checkpoint",
    "speed_table",
    "standard_library",
    "studies",
    "summary",
    "text_file",
    "time_entrywise",
    "time_polars",
    "time_steps",
    "time_whole",
    "training_share",
    "training_study",
    "upkeep",
    "waterfill",
    "ways",
    "write_whole",
]
