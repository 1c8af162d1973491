"""What anybody may expect of a torch optimizer, clause by clause."""

from normgeo.testing.clauses import basics, checkpoints, groups, tensors
from normgeo.testing.clauses.clause import CLAUSES, EFFORTS, Clause, Effort

__all__ = ["CLAUSES", "EFFORTS", "Clause", "Effort", "basics", "checkpoints", "groups", "tensors"]
