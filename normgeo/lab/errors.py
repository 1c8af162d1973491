"""What went wrong, in one line for the person who can mend it."""

__all__ = ["Diverged", "UserError"]


class UserError(Exception):
    """A mistake in what was asked for; the message names the option and what to write."""


class Diverged(UserError):  # noqa: N818
    """A run whose loss is not finite any more."""
