"""Sums, means, extremes and pools."""

from __future__ import annotations

from typing import Any

from normgeo.geometry.reading import Operation, of_weights
from normgeo.geometry.registry import operation


@operation(
    *("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "norm", "vector_norm", "prod"),
    *("cumsum", "cumprod", "topk", "sort", "median", "linalg_vector_norm", "linalg_norm", "kthvalue", "logcumsumexp"),
    *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("interpolate", "upsample", "grid_sample", "lp_pool1d", "lp_pool2d", "fn", "nanmean", "nansum", "masked_select"),
)
def reduction(op: Operation) -> Any:
    return of_weights(op) or op.result(*op.nodes)
