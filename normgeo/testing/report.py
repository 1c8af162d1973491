"""What a suite of clauses found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "NotAsked", "Refused", "Report"]

Verdict = Literal["met", "refused", "failed", "not asked"]


class Refused(Exception):  # noqa: N818
    """The optimizer says by name that it does not do this, which the clause allows."""


class NotAsked(Exception):  # noqa: N818
    """The clause has nothing to look at."""


@dataclass(frozen=True)
class Finding:
    """What became of one clause.

    >>> print(Finding("hooks", "met"))
    met        hooks
    """

    clause: str
    verdict: Verdict
    note: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:9}  {self.clause}" + (f": {self.note}" if self.note else "")


@dataclass(frozen=True)
class Report:
    """A finding per clause: met, refused by name where the clause allows that, failed, or not asked.

    >>> report = Report((Finding("hooks", "met"), Finding("pickle", "failed", "AttributeError: _leaves")))
    >>> print(report)
    met        hooks
    failed     pickle: AttributeError: _leaves
    1 met, 1 failed
    >>> [finding.clause for finding in report.failures]
    ['pickle']
    """

    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.verdict == "failed")

    def __getitem__(self, clause: str) -> Finding:
        return next(finding for finding in self.findings if finding.clause == clause)

    def count(self, verdict: Verdict) -> int:
        return sum(finding.verdict == verdict for finding in self.findings)

    def __str__(self) -> str:
        kinds: tuple[Verdict, ...] = ("met", "refused", "failed", "not asked")
        counts = ", ".join(f"{n} {kind}" for kind in kinds if (n := self.count(kind)))
        return "\n".join([*map(str, self.findings), counts])
