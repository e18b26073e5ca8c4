"""Bytes and seconds of one network's files at 90, 95, 98 and 99 % sparsity: ours beside those that other tools write.

With `--weights`, each sparsity's network is that state dict pruned by kept norm and finetuned for one epoch; without,
it has Gaussian weights in Net10's shapes (width 128 unless told otherwise) and magnitude masks of one density.

Lossless files are read again, and must hold the same numbers. Of files that round, there are ours, as rounded and (some
codebooks, with `--weights`) as a search ships them, trained for a tenth of an epoch, beside NNCodec, the coder of
ISO/IEC 15938-17, where `nncodec` is installed (`pip install nncodec`, then `pip install 'numpy>=2'`, which it takes
back but does not need): over a grid of step sizes, the smallest of its files whose network is at least as accurate.
It starts from the network as finetuned beside ours as rounded, and beside ours as trained from one trained as long.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import io
import json
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.other_files import LOSSLESS, State
from benchmarks.setting import Setting, finish, open_setting, parser, print_table, run
from netprune.compute import Format
from netprune.evaluation import evaluate
from netprune.header import PackedHeader
from netprune.masks import Sparsity, apply_masks, make_masks
from netprune.models import Architecture, build_model
from netprune.packing import pack, unpack
from netprune.pruning import PruneConfig, prune_and_finetune
from netprune.quantise import Values, quantise
from netprune.recipes import TrainConfig
from netprune.rounding import codebook_training, quantise_and_train
from netprune.rules import kept_norm
from netprune.training import Held, train
from netprune.weights import prunable_weights, read_state_dict, weights_digest

DENSITIES = (0.1, 0.05, 0.02, 0.01)
QUICK_DENSITIES = (0.1, 0.01)
OURS = "netprune fp32"
LOSSY = ("fp32", "fp16", "int8", "codebook:6", "codebook:5", "codebook:4", "codebook:3")
TRAINED = ("fp32", "codebook:4", "codebook:3")
STEPS = [(-32, -75), *((step, -40) for step in (-24, -22, -20, -19, -18, -17, -16))]
"""NNCodec's quantisation parameters, of weights and of all other tensors: its defaults, then a grid. At -40 the others
cost less and no accuracy; at -30 some networks break."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One pruned network, and what its packed file says of it."""

    model: nn.Module
    header: PackedHeader
    setting: Setting | None
    """None for Gaussian weights: there is nothing to be accurate on."""

    def with_values(self, values: Values) -> Subject:
        """One that holds what a file of these values holds."""
        model = copy.deepcopy(self.model)
        quantise(model, values)
        return replace(self, model=model)


def measure_lossless(subject: Subject) -> dict[str, tuple[int, float, float]]:
    """Method → bytes, seconds of writing, seconds of reading; on one thread.

    Raises:
        RuntimeError: if a file does not hold the network's numbers.
    """
    state = {name: tensor.cpu() for name, tensor in subject.model.state_dict().items()}
    # ours compares as the others do; its reader has held the weights against their SHA-256 by then
    methods = LOSSLESS | {
        OURS: (lambda _: pack(subject.model, subject.header), lambda data: unpack(data).model.state_dict())
    }
    measured = {}
    for name, (write, read) in methods.items():
        start = time.perf_counter()
        data = write(state)
        written = time.perf_counter()
        again = read(data)
        end = time.perf_counter()
        if again.keys() != state.keys() or not all(torch.equal(again[key], state[key]) for key in state):
            raise RuntimeError(f"{name} did not give the network back")
        measured[name] = len(data), written - start, end - written
    return measured


def measure_lossy(subject: Subject) -> dict[str, tuple[int, float, float]]:
    """Values → bytes of our file, validation accuracy in percent, loss (not a number without data)."""
    return {text: _size_and_accuracy(subject.with_values(Values.parse(text))) for text in LOSSY}


def measure_nncodec(subject: Subject) -> dict[str, tuple[int, float, float]]:
    """The same for NNCodec's files, by the two quantisation parameters; nothing where it is not, or without data."""
    if subject.setting is None or not importlib.util.find_spec("nncodec"):
        return {}
    from nncodec import nn as codec

    state = subject.model.state_dict()
    arrays = {name: tensor.cpu().numpy() for name, tensor in state.items() if tensor.ndim}
    measured = {}
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        for step, others in STEPS:
            options = {"qp": step, "nonweight_qp": others, "verbose": False, "results": scratch}
            data = codec.encode(dict(arrays), options)
            decoded = {name: torch.from_numpy(array) for name, array in codec.decode(data).items()}
            measured[f"{step}/{others}"] = len(data), *_accuracy(subject, {**state, **decoded})
    return measured


def trained(subject: Subject, setting: Setting, values: Values, path: Path) -> Subject:
    """The network as a search ships it, trained for a tenth of an epoch after rounding; from `path` if kept there.

    With fp32 values it is trained as long with its masks held: NNCodec's rounding starts from a network that has seen
    as much.
    """
    model = copy.deepcopy(subject.model)
    if path.exists():
        model.load_state_dict(read_state_dict(str(path)))
    else:
        finetune = _finetune(setting)
        if values.kind == "fp32":
            part, recipe = codebook_training(setting.dataset, finetune)
            masks = {name: weight.detach() != 0 for name, weight in prunable_weights(model).items()}
            train(model, part, recipe, held=Held(masks=masks))
        else:
            quantise_and_train(model, setting.dataset, values, finetune=finetune)
        torch.save(model.state_dict(), path)
    return replace(subject, model=model)


def finetuned(setting: Setting, density: float, path: Path) -> nn.Module:
    """The dense network at a density, finetuned; from `path` if it was kept there."""
    if path.exists():
        model = copy.deepcopy(setting.model)
        model.load_state_dict(read_state_dict(str(path)))
        return model
    sparsity = kept_norm(setting.model, density)
    config = PruneConfig(finetune=_finetune(setting))
    model = prune_and_finetune(setting.model, setting.dataset, sparsity, config)
    torch.save(model.state_dict(), path)
    return model


def gaussian(width: int, density: float) -> nn.Module:
    """A Net10 of Gaussian weights, each tensor at one density."""
    model = build_model(Architecture(name="net10", num_classes=10, width=width))
    generator = torch.Generator().manual_seed(0)
    sparsity: Sparsity = {}
    for name, weight in prunable_weights(model).items():
        weight.data = torch.randn(weight.shape, generator=generator)
        sparsity = {**sparsity, name: 1 - density}
    apply_masks(model, make_masks(model, sparsity))
    return model


def main() -> None:
    warnings.filterwarnings("ignore", message=".*[Ss]parse")  # torch calls its CSR tensors new at every use
    options = _options()
    setting = _open(options) if options.weights else None
    densities = options.densities or (QUICK_DENSITIES if options.quick else DENSITIES)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.kept or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for density in densities:
            results[str(density)] = _measured(setting, density, folder / f"{density}.pt", options.width)
            _print(f"{100 * (1 - density):g} % sparsity", results[str(density)])
    ratios = [_smallest_other(found["lossless"]) / found["lossless"][OURS][0] for found in results.values()]
    what = "times the bytes of our fp32 file in the smallest other lossless one, least over the sparsities"
    finish(options, {"results": results}, min(ratios), what)


def _measured(setting: Setting | None, density: float, kept: Path, width: int) -> dict[str, Any]:
    """The figures of one sparsity, made now or kept beside its network by an earlier run."""
    figures = kept.with_suffix(".json")
    if not figures.exists():
        model = finetuned(setting, density, kept) if setting else gaussian(width, density)
        found = _measure(Subject(model, _header(model, width, setting), setting), setting, kept)
        figures.write_text(json.dumps(found, indent=1))
    read: dict[str, Any] = json.loads(figures.read_text())
    return read


def _measure(subject: Subject, setting: Setting | None, kept: Path) -> dict[str, Any]:
    rounded, codec = measure_lossy(subject), measure_nncodec(subject)
    after: dict[str, tuple[int, float, float]] = {}
    codec_after: dict[str, tuple[int, float, float]] = {}
    if setting:
        for text in TRAINED:
            path = kept.with_name(f"{kept.stem}-{text.replace(':', '')}.pt")
            found = trained(subject, setting, Values.parse(text), path)
            after[text] = _size_and_accuracy(found)
            if text == "fp32":
                codec_after = measure_nncodec(found)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lossless = measure_lossless(subject)
    torch.set_num_threads(threads)
    return {
        "lossless": lossless,
        "as rounded": {"netprune": rounded, "nncodec": codec},
        "trained": {"netprune": after, "nncodec": codec_after},
    }


def _size_and_accuracy(subject: Subject) -> tuple[int, float, float]:
    return len(pack(subject.model, subject.header)), *_accuracy(subject, subject.model.state_dict())


def _print(title: str, found: Mapping[str, Any]) -> None:
    ours = found["lossless"][OURS][0]
    rows = [[n, f"{b:,}", f"{b / ours:.3f}", f"{w:.2f}", f"{r:.2f}"] for n, (b, w, r) in found["lossless"].items()]
    print()
    print_table([title, "bytes", "of ours", "write s", "read s"], rows)
    for when in ("as rounded", "trained"):
        codec = found[when]["nncodec"]
        rows = [
            [name, f"{size:,}", f"{accuracy:.2f} %", f"{loss:.4f}", _nncodec_cell(codec, accuracy)]
            for name, (size, accuracy, loss) in found[when]["netprune"].items()
        ]
        if rows:
            print_table([when, "bytes", "val accuracy", "loss", "NNCodec at that accuracy (steps)"], rows)


def _nncodec_cell(codec: Mapping[str, tuple[int, float, float]], accuracy: float) -> str:
    reached = [(size, steps) for steps, (size, its, _) in codec.items() if its >= accuracy]
    if not reached:
        return "none as accurate" if codec else "not measured"
    size, steps = min(reached)
    return f"{size:,} ({steps})"


def _smallest_other(lossless: Mapping[str, tuple[int, float, float]]) -> int:
    return min(size for name, (size, _, _) in lossless.items() if name != OURS)


def _accuracy(subject: Subject, state: State) -> tuple[float, float]:
    if subject.setting is None:
        return float("nan"), float("nan")
    model = copy.deepcopy(subject.model).to(memory_format=torch.channels_last)  # twice as fast
    model.load_state_dict(dict(state))
    found = evaluate(model, subject.setting.dataset.val, subject.setting.dataset)
    return 100 * found.accuracy, found.loss


def _header(model: nn.Module, width: int, setting: Setting | None) -> PackedHeader:
    data = setting.dataset if setting else None
    return PackedHeader(
        architecture=Architecture(name="net10", num_classes=len(data.classes) if data else 10, width=width),
        classes=data.classes if data else tuple(map(str, range(10))),
        mean=data.mean if data else (0.5, 0.5, 0.5),
        std=data.std if data else (0.25, 0.25, 0.25),
        dense_digest=weights_digest(setting.model if setting else model),
    )


def _finetune(setting: Setting) -> TrainConfig:
    return TrainConfig(epochs=1, batch_size=setting.options.batch_size, format=Format(channels_last=True))


def _open(options: argparse.Namespace) -> Setting:
    setting = open_setting(options)
    part = setting.dataset.part(options.share, seed=0) if options.share < 1 else setting.dataset
    return Setting(setting.model, part, options)


def _options() -> argparse.Namespace:
    made = parser(__doc__ or "", weights=False)
    made.add_argument("--weights", help="plain state dict of a Net10; default: none, Gaussian weights")
    made.add_argument("--width", type=int, default=128, help="channels of its first layer (default 128)")
    made.add_argument("--share", type=float, default=1.0, help="of the training images for finetuning (default 1)")
    made.add_argument("--batch-size", type=int, default=256, help="images a finetuning step (default 256)")
    made.add_argument("--densities", type=float, nargs="+", help="kept weights (default 0.1 0.05 0.02 0.01)")
    made.add_argument("--kept", help="folder for finetuned networks and their figures, so that they are made once")
    return made.parse_args()


if __name__ == "__main__":
    run(main)
