"""Read-only looks at training."""

from normgeo.diagnostics.logging import Logger, TensorBoard, WandB, watch

__all__ = ["Logger", "TensorBoard", "WandB", "watch"]
