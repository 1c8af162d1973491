"""What a clause is: a function that does what it asks for, and fails, refuses or has nothing to ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from normgeo.testing.report import Finding, NotAsked, Refused
from normgeo.testing.subject import Subject, first_sentence

__all__ = ["CLAUSES", "EFFORTS", "Clause", "Effort", "clause"]

Check = Callable[[Subject], None]
Effort = Literal["quick", "full", "slow"]
EFFORTS: tuple[Effort, ...] = ("quick", "full", "slow")


@dataclass(frozen=True)
class Clause:
    name: str
    check: Check
    effort: Effort

    def examine(self, subject: Subject) -> Finding:
        try:
            self.check(subject)
        except NotAsked as reason:
            return Finding(self.name, "not asked", str(reason))
        except Refused as reason:
            return Finding(self.name, "refused", str(reason))
        except Exception as error:
            return Finding(self.name, "failed", first_sentence(error))
        return Finding(self.name, "met")


CLAUSES: list[Clause] = []


def clause(name: str, effort: Effort = "full") -> Callable[[Check], Check]:
    """Add a clause to the suite. A quick one is about what a single part may break; a slow one takes seconds."""

    def keep(check: Check) -> Check:
        CLAUSES.append(Clause(name, check, effort))
        return check

    return keep
