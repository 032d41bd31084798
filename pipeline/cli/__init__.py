"""The command ``qwq-batch``: its group, and its commands by module.

Exit codes: 0 every row is accounted for; 1 the run ended without some, or at a limit, or all rows
failed; 2 the command, the config, the input or the output can't be used as given; 143 ended by
SIGTERM, 130 by Ctrl-C, 129 by SIGHUP, with running traces saved.

Commands import what they need when they run: ``--help``, ``init`` and completion stay quick.
"""

from collections.abc import Sequence
from typing import NoReturn

import click

from pipeline import console
from pipeline.cli import jobs, outputs, runs
from pipeline.printing import print_error

EPILOG = (
    "Exit codes: 0 every row is accounted for; 1 the run ended without some, or at a limit, or all "
    "rows failed; 2 the command, the config, the input or the output can't be used; 143, 130 and "
    "129 ended by SIGTERM, Ctrl-C or SIGHUP, and the same command resumes."
)
COMMANDS = (
    runs.init, runs.run, runs.work, runs.retry, runs.plan, runs.doctor, runs.estimate,
    outputs.show, outputs.status, outputs.report,
    jobs.label, jobs.judge, jobs.synthesize, jobs.stages, jobs.nightly, jobs.openai_batch,
    outputs.evaluate, outputs.export, outputs.push, outputs.register,
)  # fmt: skip


class Commands(click.Group):
    """A group whose help lists the commands in the order of `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return list(self.commands)


@click.group(
    cls=Commands,
    epilog=EPILOG,
    no_args_is_help=False,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="qwq-batch", message="%(package)s %(version)s")
def qwq_batch() -> None:
    """Distributed batch generation with QwQ-32B and QwQ-32B-Preview."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line (by default the process's own) and exit with the command's code."""
    console.exit_with(lambda: _invoke(arguments))


def _invoke(arguments: Sequence[str] | None) -> int:
    try:
        code = qwq_batch.main(arguments, prog_name="qwq-batch", standalone_mode=False)
    except click.UsageError as error:
        if error.ctx is not None:
            print_error(error.ctx.get_usage())
        print_error(f"error: {error.format_message()}")
        return 2
    except click.Abort:
        raise KeyboardInterrupt from None
    return int(code or 0)


for command in COMMANDS:
    qwq_batch.add_command(command)
