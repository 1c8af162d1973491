"""Where the features of a tensor are. Tokens (..., t, features) have them on the last axis, images (..., channels, h, w)
on the third from the end; either way a tensor's size is its RMS over features, maximum over everything else."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Layout"]


class Layout:
    """The axis of the features, counted from the end; shared by all tensors that have it, and unknown until the first
    module that looks at features says what it is.

    >>> image = Layout()
    >>> twice = Layout.shared([image], "mul")
    >>> twice.claim(-3, "Conv2d")
    >>> image.axis
    -3
    """

    def __init__(self, axis: int | None = None) -> None:
        self._axis = axis
        self._same: Layout | None = None

    @property
    def axis(self) -> int | None:
        """-1 behind Linear, -3 behind Conv2d, None if nobody has said so."""
        return self._root()._axis

    def claim(self, axis: int, name: str) -> None:
        """Say that the features are on this axis."""
        if self.axis not in (None, axis):
            raise ValueError(
                f"{name} looks for features on axis {axis}, but what runs before it has them on axis {self.axis}; put "
                f"Flatten(), Tokens() or GlobalAverage() between images and vectors, or give axis={self.axis}"
            )
        self._root()._axis = axis

    @staticmethod
    def shared(layouts: Sequence[Layout], name: str) -> Layout:
        """The one layout of tensors that are combined entry by entry; a new one for none."""
        first, *rest = layouts or [Layout()]
        for other in rest:
            if first.axis is None:
                first, other = other, first
            if other.axis is not None and first.axis is not None:
                other.claim(first.axis, name)
            elif other._root() is not first._root():
                other._root()._same = first._root()
        return first

    def _root(self) -> Layout:
        return self if self._same is None else self._same._root()
