"""Rows picked from tables: a change of a row is a change of all that it was picked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from normgeo.geometry.bounds.local import Local, Measure, Term
from normgeo.geometry.bounds.tracer import Linearized, linearization


@linearization("embedding")
def embedding(op: Linearized) -> Any:
    ids, weight = op.tensor(0, "input"), op.local(1, "weight")
    if weight is None:
        return None
    shape, width = tuple(op.outputs[0].shape), weight.shape[-1]
    if weight.plain:
        places = ids.unsqueeze(-1) * width + torch.arange(width)
        slope = weight.terms[0].slope
        terms: tuple[Term, ...] = (Term(places, None if slope is None else slope.expand(weight.shape)[ids]),)
    else:
        terms = tuple(
            replace(
                t, index=weight.numbers(t)[ids], slope=None if t.slope is None else t.slope.expand(weight.shape)[ids]
            )
            for t in weight.terms
        )
    measure = Measure((len(shape) - 1,))
    return op.node(measure, [(Local(weight.root, shape, terms), measure, 1.0)])
