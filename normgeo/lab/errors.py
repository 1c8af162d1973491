"""What went wrong, in one line for the person who can mend it."""

__all__ = ["UserError"]


class UserError(Exception):
    """A mistake in what was asked for; the message names the option and what to write."""
