"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from netprune.errors import InputError
from netprune.image_folder import IMAGE_SIZE, LARGEST_SIZE, LEAST_SIZE
from netprune.models import MODELS
from netprune.saliency import SALIENCIES
from sweeps.proposing import SAMPLERS
from sweeps.scores import OBJECTIVES
from sweeps.stages.data import AUTO, DEFAULT_DATA_DIR

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


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


def _stack(*options: Decorator) -> Decorator:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


OF_A_MODEL = (
    "auto: what the model was trained on, with --weights cifar10",
    "auto: the model's own, beside which it may not be another; with --weights 32",
    f"auto: as the model was trained, if --dataset is auto too; else {DEFAULT_DATA_DIR}",
)
"""What `auto` is for `--dataset`, `--image-size` and `--data-dir` where a command begins with a dense network."""
OF_A_STUDY = (
    "auto: the study's",
    "auto: the study's",
    f"auto: the study's, if --dataset is auto too; else {DEFAULT_DATA_DIR}",
)
"""And where it begins with a study."""


def data_options(default: str, auto: tuple[str, str, str] = OF_A_MODEL) -> Decorator:
    """`--dataset`, `--image-size`, `--data-dir`, `--device` and, but for a study, `--mean` and `--std`: see
    `DataRequest.of`."""
    recorded = default == AUTO
    trained = "the model's own; with --weights " if recorded else ""
    normalised = [
        click.option(
            f"--{name}",
            default=AUTO,
            help=f"{what} that the network's images are normalised with: of pixels in [0, 1], three numbers, such as "
            f"{example}; auto: {trained}CIFAR-10's.",
        )
        for name, what, example in (
            ("mean", "Mean", "0.485,0.456,0.406"),
            ("std", "Standard deviation", "0.229,0.224,0.225"),
        )
    ]
    dataset, size, kept = (f"; {each}." for each in auto) if recorded else "..."
    return _stack(
        click.option(
            "--dataset", default=default, help=f"cifar10, digits, or a folder with train/<class>/ images{dataset}"
        ),
        click.option(
            "--image-size",
            type=AutoOr(int) if recorded else int,
            default=AUTO if recorded else IMAGE_SIZE,
            help=f"Side in pixels, {LEAST_SIZE} to {LARGEST_SIZE}, that a folder's images are brought to{size}",
        ),
        click.option(
            "--data-dir",
            default=AUTO if recorded else DEFAULT_DATA_DIR,
            help=f"Where CIFAR-10 and decoded image folders are kept{kept}",
        ),
        click.option(
            "--device", default="auto", help="cpu, cuda, or cuda:1 and so on; auto: the first CUDA GPU, else cpu."
        ),
        *([] if auto is OF_A_STUDY else normalised),
    )


OWN = "module:function of your own, which is given the number of classes and gives a torch.nn.Module"
network_option = click.option("--model", default="net10", help=f"Network: {', '.join(sorted(MODELS))}, or {OWN}.")
width_option = click.option("--width", default=128, help="Channels of the first layer; for Net10 only.")


def _start_options(beside: str) -> Decorator:
    return _stack(
        click.option("--weights", default="", help=f"File with a plain state dict to start from{beside}."),
        click.option(
            "--adapt-head",
            type=bool,
            is_flag=False,
            flag_value="true",
            default=False,
            help="With --weights: replace a head with another number of classes.",
        ),
    )


model_options = _stack(network_option, width_option, _start_options(""))

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
    click.option(
        "--model",
        default="net10",
        help=f"Network of --weights: {', '.join(sorted(MODELS))}, or {OWN}; of a model of the store only one of your "
        "own class needs it.",
    ),
    click.option("--width", default=128, help="Of --weights, channels of Net10's first layer."),
    _start_options(", in the place of a model of the store; refused beside --model-uri"),
    bounds_options,
)


def model_words(own: str) -> str:
    """How the next command is told what builds a network of the user's own class; nothing for others."""
    return f" --model {own}" if own else ""


own_option = click.option(
    "--model", default="", help="For a network of your own: the module:function that builds it; else not needed."
)


def scan_options(precision: str) -> Decorator:
    """Those of a scan; `precision` is what `--precision` is for."""
    return _stack(
        click.option(
            "--sparsities",
            default="auto",
            help="Scanned sparsities, rising, in (0, 1], such as 0.4,0.6,0.9; auto: log-spaced in density down to "
            "0.1 %, refined, and 1.",
        ),
        click.option(
            "--max-se",
            default=0.02,
            help="Each point takes images until the standard error of its damage is below this, in nats, or below 5 % "
            "of the damage; 0: all images.",
        ),
        click.option("--precision", default="auto", help=precision),
        click.option("--saliency", default="magnitude", help=f"Which weights go first: {', '.join(SALIENCIES)}."),
    )


search_options = _stack(
    click.option(
        "--max-drop",
        default="0.5",
        help="Points of validation accuracy that may be lost; several, such as 0,0.5,2, share one study's trials.",
    ),
    click.option(
        "--accuracy-floor",
        default=0.0,
        help="Least validation accuracy in percent, one number; --max-drop is then ignored. 0: by --max-drop.",
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
    click.option("--sampler", default="tpe", help=f"Who proposes the layers' offsets: {', '.join(SAMPLERS)}."),
    click.option(
        "--timeout",
        default=0.0,
        help="Seconds of this session after which no trial starts; confirmations follow. 0: no limit.",
    ),
    click.option(
        "--epochs", default=0.0, help="Finetune epochs of all trials together, without confirmations; 0: no limit."
    ),
    click.option(
        "--confirm-epochs",
        type=AutoOr(float),
        default=AUTO,
        help="Epochs of finetuning a candidate again; auto: three times a trial's.",
    ),
    click.option("--confirm-seeds", default=2, help="Fresh seeds of a confirmation, at least 2; 0: none is made."),
    click.option(
        "--confirm-most",
        default=6,
        help="Finetunings of a floor's candidates (of new ones, or once more) after which, one being accepted, no "
        "smaller one is tried.",
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
