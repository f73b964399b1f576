"""`python -m sttabt.run experiment=NAME [key=value ...]`, installed as `sttabt`: one run, or a sweep of runs.

Exit codes: 0, 2 for a user's mistake (one line on stderr), 1 when jobs of a sweep failed, 130 after Ctrl-C, 143 after
SIGTERM.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

from sttabt.errors import UserError
from sttabt.system.scratch import keep_temporary_files
from sttabt.system.signals import check, run_command

if TYPE_CHECKING:
    import argparse

FULL_ERROR = "HYDRA_FULL_ERROR"


def main() -> None:
    """The command line, from sys.argv. A mistake's traceback shows only with HYDRA_FULL_ERROR=1."""
    # Imported here, where Ctrl-C is caught already.
    import hydra

    from sttabt.cli.composition import VERSION_BASE, check_group, config_folder
    from sttabt.cli.help import help_text
    from sttabt.cli.messages import explain, is_mistake
    from sttabt.cli.sweep import JobsFailedError
    from sttabt.cli.task import run_task
    from sttabt.settings.renamed import new_override

    given = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"  # Hydra then raises what it would print over many lines
    try:
        sys.argv[1:] = [new_override(argument) for argument in sys.argv[1:]]
        arguments = _read_arguments()
        for override in arguments.overrides:
            check_group(override)
        if arguments.help:
            sys.stdout.write(help_text(arguments.overrides, arguments.config_dir))
            return
        hydra.main(version_base=VERSION_BASE, config_path=str(config_folder()), config_name="config")(run_task)()
    except JobsFailedError as failed:
        sys.stderr.write(f"{failed}\n")
        sys.exit(failed.exit_code)
    except (Exception, SystemExit) as error:
        check()  # else a mistake that a signal caused would be one
        # A job hands its mistake over as the cause of SystemExit.
        mistake = error.__cause__ if isinstance(error, SystemExit) else error
        if mistake is None or not is_mistake(mistake):
            raise
        sys.stderr.write("".join(traceback.format_exception(mistake)) if given == "1" else f"{explain(mistake)}\n")
        sys.exit(2)
    finally:
        if given is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = given


def command() -> None:
    """The process of that command line: also what a signal does to it."""

    def run() -> None:
        keep_temporary_files()
        main()

    run_command(run, "sttabt.run", "goes on")


def _read_arguments() -> argparse.Namespace:
    """Hydra's options and overrides. Raises UserError for an unknown option."""
    from hydra._internal.utils import get_args_parser

    arguments, unknown = get_args_parser().parse_known_args()
    if unknown:
        raise UserError(f"cannot read '{unknown[0]}': give options first (sttabt --help), then key=value pairs")
    return arguments


if __name__ == "__main__":
    command()
