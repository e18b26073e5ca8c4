"""What every command shares: one-line errors, exit codes, interrupts, and the options that several take."""

from __future__ import annotations

import functools
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import click

from netprune import distributed
from netprune.distributed import ALONE, Team
from netprune.errors import InputError
from netprune.image_folder import IMAGE_SIZE, LARGEST_SIZE, LEAST_SIZE
from netprune.models import MODELS
from netprune.saliency import SALIENCIES
from sweeps import interrupts
from sweeps.progress import Voice, detail, duration, speaking
from sweeps.proposing import SAMPLERS
from sweeps.scores import OBJECTIVES
from sweeps.secrets import masked
from sweeps.stages.source import AUTO, DEFAULT_DATA_DIR
from sweeps.storage import storage_errors, storage_message
from sweeps.store import STORE_ERRORS, open_store, store_message

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
EXIT_INTERRUPTED = 130
EXIT_CODES = "Exit codes: 0 done, 1 input that cannot be used, 2 a wrong option, 130 interrupted."


class OneLineCommand(click.Command):
    """A command whose errors are one line on stderr, without the usage above them."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            if not distributed.launched().first:  # the first process says it
                sys.exit(error.exit_code)
            raise click.UsageError(error.format_message()) from None


class AutoOr(click.ParamType[Any]):
    """A number, or `auto`, which is left as it is."""

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind
        self.name = "integer" if kind is int else "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or `auto`."""
        try:
            return value if value == AUTO else self.kind(value)
        except ValueError:
            number = "a whole number" if self.kind is int else "a number"
            self.fail(f"{value!r} is neither {number} nor {AUTO}.", param, ctx)


def command(example: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a click command: exit 0 when done, 1 for input that cannot be used, 2 for a wrong option, 130 interrupted.

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
        except KeyboardInterrupt:
            _end(team, "Interrupted: the run is closed as KILLED; what was kept is in it.", EXIT_INTERRUPTED)

    return guarded


def numbers(name: str, text: str) -> tuple[float, ...]:
    """`0,0.5,2` → numbers.

    Raises:
        InputError: naming the option.

    >>> numbers("max_drop", "0,0.5,2")
    (0.0, 0.5, 2.0)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{name} is {text!r}; it is a number, or several such as 0,0.5,2.") from None


def _end(team: Team, message: str, code: int = 1, *, trace: bool = False) -> NoReturn:
    """Say a sentence, after the traceback of the error that is being handled if that is wanted, and end."""
    if team.first:
        if trace:
            click.echo(masked(traceback.format_exc()), err=True)
        click.echo(message, err=True)
    sys.exit(code)


def _stack(*options: Decorator) -> Decorator:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def data_options(default: str) -> Decorator:
    """`--dataset`, `--image-size`, `--data-dir` and `--device`: see `DataRequest.of`."""
    recorded = default == AUTO
    return _stack(
        click.option(
            "--dataset",
            default=default,
            help="cifar10, digits, or a folder with train/<class>/ images"
            + (" (auto: what the model was trained on, else cifar10)." if recorded else "."),
        ),
        click.option(
            "--image-size",
            type=AutoOr(int) if recorded else int,
            default=AUTO if recorded else IMAGE_SIZE,
            help=f"Side in pixels, {LEAST_SIZE} to {LARGEST_SIZE}, that a folder's images are brought to"
            + (" (auto: what the model was trained on, else 32)." if recorded else "."),
        ),
        click.option(
            "--data-dir",
            default=AUTO if recorded else DEFAULT_DATA_DIR,
            help="Where CIFAR-10 and decoded image folders are kept"
            + (f" (auto: as the model was trained, else {DEFAULT_DATA_DIR})." if recorded else "."),
        ),
        click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps …"),
    )


network_option = click.option(
    "--model",
    default="net10",
    help=f"Network: {', '.join(sorted(MODELS))}, or module:function of your own, which is given the number of "
    f"classes and gives a torch.nn.Module.",
)

model_options = _stack(
    network_option,
    click.option("--width", default=128, help="Channels of Net10's first layer."),
    click.option("--weights", default="", help="File with a plain state dict to start from."),
    click.option(
        "--adapt-head",
        type=bool,
        is_flag=False,
        flag_value="true",
        default=False,
        help="Replace a head with another number of classes.",
    ),
)

bounds_options = _stack(
    click.option(
        "--keep", default="", help="Layers that are never pruned, by patterns: conv1.*,fc; a density is of the others."
    ),
    click.option(
        "--limit", default="", help="Largest sparsity of layers, in [0, 1], by patterns: res2.*=0.99,conv4*=0.95."
    ),
)

source_options = _stack(
    click.option(
        "--model-uri",
        default="",
        help="Dense model: a run id, models:/NAME/VERSION or models:/NAME@ALIAS; default: the newest trained.",
    ),
    model_options,
    bounds_options,
)


def model_words(own: str) -> str:
    """How the next command is told what builds a network of the user's own class; nothing for others."""
    return f" --model {own}" if own else ""


own_option = click.option(
    "--model", default="", help="For a network of your own: the module:function that builds it; else not needed."
)

scan_options = _stack(
    click.option(
        "--sparsities",
        default="auto",
        help="Scanned sparsities such as 0.4,0.6,0.9, in (0, 1]; auto: log-spaced in density down to 0.1 %, refined.",
    ),
    click.option(
        "--max-se", default=0.02, help="Paired error of a point's damage, in nats, that images are added for; 0: all."
    ),
    click.option("--precision", default="auto", help="auto: what is fastest here; fp32: the bits of whole passes."),
    click.option("--saliency", default="magnitude", help=f"Which weights go first: {', '.join(SALIENCIES)}."),
)

search_options = _stack(
    click.option(
        "--max-drop",
        default="0.5",
        help="Points of validation accuracy that may be lost; several, such as 0,0.5,2, share one study's trials.",
    ),
    click.option(
        "--accuracy-floor", default=0.0, help="Least validation accuracy in percent; 0: the dense one less max-drop."
    ),
    click.option("--trials", default=24, help="Trials of the study, those of earlier sessions included."),
    click.option("--finetune-epochs", default=1.0, help="Epochs of finetuning a trial, such as 0.25; 0 for none."),
    click.option("--values", default="fp32", help="How the file stores weights: fp32, fp16, int8 or codebook:2 to 8."),
    click.option(
        "--objective",
        default=OBJECTIVES[0],
        help="Minimise packed_bytes, the file's length, or nonzero_bytes, parameters as fp32 without positions.",
    ),
    click.option("--batch-size", default=64, help="Images a finetuning step."),
    click.option("--sampler", default="tpe", help=f"Who proposes trials after the seeds: {', '.join(SAMPLERS)}."),
    click.option("--timeout", default=0.0, help="Seconds after which no new trial starts; 0 for no limit."),
    click.option("--epochs", default=0.0, help="Finetune epochs that all trials together may take; 0 for no limit."),
    click.option(
        "--confirm-epochs",
        type=AutoOr(float),
        default=AUTO,
        help="Epochs of finetuning a candidate again; auto: three times a trial's.",
    ),
    click.option("--confirm-seeds", default=2, help="Fresh seeds a candidate is confirmed with; 0: not confirmed."),
    click.option(
        "--confirm-most",
        default=4,
        help="Candidates after which, one being accepted, no smaller one is tried; as many are finetuned once more.",
    ),
    click.option("--workers", default=1, help="Processes on this machine, each with its share of cores and GPUs."),
    click.option("--seed", default=0, help="Of the sampler and the finetuning."),
)

storage_option = click.option(
    "--storage",
    default="",
    envvar="NETPRUNE_STORAGE",
    show_envvar=True,
    help="Where the study lives: a database's address or grpc://host:port; default: optuna.journal here.",
)

study_option = click.option("--study-name", default="", help="The study; default: the newest in the store.")
