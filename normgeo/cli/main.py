"""`normgeo`: one command for each thing that the lab does."""

from __future__ import annotations

import sys

import click

import normgeo
from normgeo.cli.bench import bench
from normgeo.cli.explain import explain
from normgeo.cli.sweep import sweep
from normgeo.cli.train import train
from normgeo.lab import UserError

__all__ = ["main"]


@click.group()
@click.version_option(normgeo.__version__, prog_name="normgeo")
def commands() -> None:
    """Norm-based optimization for PyTorch."""


commands.add_command(bench)
commands.add_command(explain)
commands.add_command(sweep)
commands.add_command(train)


def main() -> None:
    """Run a command; a mistake of the user is one line on stderr and exit status 2."""
    try:
        sys.exit(commands.main(prog_name="normgeo", standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as help_text:
        click.echo(help_text.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"normgeo: {error.format_message()}", err=True)
        sys.exit(2)
    except UserError as error:
        click.echo(f"normgeo: {error}", err=True)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        click.echo("normgeo: not enough memory; choose a smaller --width, --depth, --context or --batch", err=True)
        sys.exit(2)
    except OSError as error:
        click.echo(f"normgeo: {error.filename or 'the output'}: {error.strerror}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("normgeo: stopped", err=True)
        sys.exit(130)
