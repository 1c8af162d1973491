"""`normgeo bench`: measurements that anybody can repeat."""

import click

from normgeo.cli.budgets import budgets
from normgeo.cli.distributed import distributed
from normgeo.cli.models import models
from normgeo.cli.quality import quality
from normgeo.cli.speed import speed

__all__ = ["bench"]


@click.group()
def bench() -> None:
    """Measure optimizers beside others."""


bench.add_command(budgets)
bench.add_command(distributed)
bench.add_command(models)
bench.add_command(quality)
bench.add_command(speed)
