"""What every entry point shares: errors become one clear line each on stderr and exit status 2."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from kuproxy.errors import KuError

USAGE_ERROR = 2

config_option = click.option(
    "--config",
    "configs",
    multiple=True,
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A `ku` script (*.ku) or Kubernetes manifests (*.yaml, *.json). May be repeated.",
)


def run(command: click.Command, arguments: Sequence[str] | None = None, name: str = "ku") -> None:
    """Run a click command as the whole process, and exit.

    KuError and click's usage errors end with status 2, a closed pipe quietly, Ctrl-C with 130.
    """
    try:
        status = command.main(arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(USAGE_ERROR)
    except click.ClickException as error:
        print(_in_one_line(error, name), file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except KuError as error:
        print(error, file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(status if isinstance(status, int) else 0)


def _in_one_line(error: click.ClickException, name: str) -> str:
    """What click has to say, and of which command."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else name
    return f"{path}: {' '.join(error.format_message().split())} ({path} --help)"
