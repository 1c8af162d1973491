"""`normgeo bench`: measurements that anybody can repeat."""

import click

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure optimizers beside others."""
