"""Rules: what is smoothed and accumulated before the direction."""

from normgeo.rules.base import Rule
from normgeo.rules.lags import AdamLags, LagCurve, best_momentum, saturating_lr
from normgeo.rules.momentum import HeavyBall, Momentum, Plain
from normgeo.rules.retune import Retune
from normgeo.rules.tuned import TunedMomentum

__all__ = [
    "AdamLags",
    "HeavyBall",
    "LagCurve",
    "Momentum",
    "Plain",
    "Retune",
    "Rule",
    "TunedMomentum",
    "best_momentum",
    "saturating_lr",
]
