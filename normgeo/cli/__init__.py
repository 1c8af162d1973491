"""The command line, thin."""

from normgeo.cli.main import main

__all__ = ["main"]
