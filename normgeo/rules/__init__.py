"""Rules: what is smoothed and accumulated before the direction."""

from normgeo.rules.base import Rule
from normgeo.rules.momentum import HeavyBall, Momentum, Plain

__all__ = ["HeavyBall", "Momentum", "Plain", "Rule"]
