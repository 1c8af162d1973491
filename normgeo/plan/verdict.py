"""Does the promise of a plan apply?"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Verdict"]


@dataclass(frozen=True)
class Verdict:
    """True if nothing stands against the promise, else False with the reasons.

    >>> verdict = Verdict(("head.weight: its norm is 1.5, outside the unit ball",))
    >>> bool(verdict), bool(Verdict())
    (False, True)
    """

    reasons: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.reasons

    def __str__(self) -> str:
        return "holds" if self else "\n".join(self.reasons)
