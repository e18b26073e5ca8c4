"""What every command shares: one-line errors, exit codes and interrupts."""

from __future__ import annotations

import functools
import io
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import click

from netprune import distributed
from netprune.distributed import ALONE, Team
from netprune.errors import InputError
from sweeps import interrupts
from sweeps.progress import Voice, detail, duration, speaking
from sweeps.secrets import masked
from sweeps.storage import storage_errors, storage_message
from sweeps.store import STORE_ERRORS, open_store, store_message
from sweeps.system import system_message

EXIT_INTERRUPTED = 130
EXIT_CODES = (
    "Exit codes: 0 done; 1 input, store or training failed, or nothing to register; 2 wrong option; 130 interrupted."
)


class OneLineCommand(click.Command):
    """A command whose errors are one line on stderr, without the usage above them."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            if not distributed.launched().first:  # the first process says it
                sys.exit(error.exit_code)
            raise click.UsageError(error.format_message()) from None


def command(example: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a click command, which exits with `EXIT_CODES`.

    `mlflow run -P data_dir=…` passes names with underscores, so `--data_dir` and `--data-dir` are the same. Every
    command has `--verbose` and `--quiet`.

    Args:
        example: a command line that `--help` ends with.
    """
    return functools.partial(_command, example=example, several=False)


def team_command(example: str) -> Callable[[Callable[..., None]], click.Command]:
    """The same for a function that torchrun may start in several processes, which are one `distributed.team` within it.

    Only the first process opens the store, and only it speaks.
    """
    return functools.partial(_command, example=example, several=True)


def _command(function: Callable[..., None], *, example: str, several: bool) -> click.Command:
    settings = {"show_default": True, "token_normalize_func": lambda token: token.replace("_", "-")}
    epilog = f"\b\nExample:\n  {example}\n\n\b\n{EXIT_CODES}"  # \b: as it stands, no line is broken
    made = click.command(cls=OneLineCommand, context_settings=settings, epilog=epilog)(_guarded(function, several))
    for option in made.params:
        if isinstance(option, click.Option) and option.default == "":
            option.show_default = False  # its text says what is taken then
    made.params += [
        click.Option(["-v", "--verbose"], is_flag=True, help="Say more: store, data and runs; tracebacks of errors."),
        click.Option(["-q", "--quiet"], is_flag=True, help="Say nothing but results and errors."),
    ]
    return made


def _guarded(function: Callable[..., None], several: bool) -> Callable[..., None]:
    """The function with what happens to it ended in one sentence and an exit code."""

    @functools.wraps(function)
    def guarded(*, verbose: bool, quiet: bool, **options: Any) -> None:
        team, start = ALONE, time.monotonic()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal that has no → or ± shall not lose the result
        voice = Voice.VERBOSE if verbose else Voice.QUIET if quiet else Voice.NORMAL
        try:
            team = distributed.launched()
            if verbose and quiet:
                _end(team, "Error: --verbose and --quiet are both given: choose one.", 2)
            if not (team.alone or several):
                raise InputError(
                    "this command runs in one process: start it without torchrun, which is for sweeps.train."
                )
            with speaking(voice if team.first else Voice.QUIET), interrupts.heard(), distributed.joined():
                if team.first:
                    open_store()
                function(**options)
                detail(f"took {duration(time.monotonic() - start)}")
        except InputError as error:
            _end(team, f"Error: {masked(str(error))}", trace=verbose)
        except storage_errors() as error:
            _end(team, f"Error: the study's storage answered: {storage_message(error)}.", trace=verbose)
        except STORE_ERRORS as error:
            _end(team, f"Error: {store_message(error)}", trace=verbose)
        except (OSError, RuntimeError, MemoryError) as error:
            said = system_message(error)
            if not said:
                raise
            _end(team, f"Error: {masked(said)}", trace=verbose)
        except KeyboardInterrupt:
            _end(team, "Interrupted: the run is closed as KILLED; what was kept is in it.", EXIT_INTERRUPTED)

    return guarded


def _end(team: Team, message: str, code: int = 1, *, trace: bool = False) -> NoReturn:
    """Say a sentence, after the traceback of the error that is being handled if that is wanted, and end."""
    if team.first:
        if trace:
            click.echo(masked(traceback.format_exc()), err=True)
        click.echo(message, err=True)
    sys.exit(code)
