"""How a study stands: its networks beside the dense one, what is confirmed, what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from netprune.contents import file_contents
from netprune.packing import PackedModel
from netprune.size import measure_size
from sweeps import artifacts, tracking
from sweeps.findings import Accuracy, FloorResult, LayerRow, Network, Step
from sweeps.stages.repeating import register_command, search_command
from sweeps.stages.starting import PACKED_FILE
from sweeps.stages.studies import DENSE, FoundStudy, Winner, logged_change, version_uri
from sweeps.table import percent

UNSURE = "the smallest trial that met the floor, which is not confirmed"
ENOUGH, LATE = 8, 0.75
"""Trials from which it says something that the best one came late, and the share of them that is late."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The pruned network that the page goes into."""

    label: str
    """In words, within a sentence."""
    run: tracking.FoundRun
    packed: PackedModel
    file: bytes


@dataclass(frozen=True, slots=True)
class Standing:
    """A study with what came of its candidates."""

    study: FoundStudy
    confirmed: Mapping[float, Winner | None]
    """See `FoundStudy.confirmed`."""
    registered: Mapping[str, tracking.FoundRun]
    """Run id of a network → the run that registered it and read test for it."""

    @classmethod
    def of(cls, study: FoundStudy) -> Standing:
        """Look it up."""
        return cls(study, study.confirmed(), study.registered())

    @property
    def decided(self) -> bool:
        """Whether the study has come to its end, where candidates are accepted or not; some are finetuned before."""
        return bool(self.confirmed)

    @property
    def winners(self) -> tuple[Winner, ...]:
        """The confirmed networks, that of the highest floor first."""
        return tuple(won for won in self.confirmed.values() if won is not None)


def choose(standing: Standing) -> Shown | None:
    """The confirmed network of the highest floor that has one, else the smallest trial that met the floor, if any."""
    won, best = next(iter(standing.winners), None), standing.study.best
    if won is not None:
        return _shown(standing.study, f"the confirmed network for the floor of {percent(won.floor)}", won.run)
    if best is None:
        return None
    return _shown(standing.study, f"{best.name.removeprefix(standing.study.name).strip()}, {UNSURE}", best)


def dense_network(standing: Standing, dense: PackedModel) -> Network:
    """The dense one; test as a registration of this study read it."""
    metrics, read = standing.study.run.metrics, next(iter(standing.registered.values()), None)
    return Network(
        label="dense",
        val=val_accuracy(standing.study, metrics, DENSE),
        test=_test(read.metrics, DENSE) if read else None,
        change=None,
        nonzero_bytes=measure_size(dense.model).nonzero_bytes,
        packed_bytes=int(metrics["dense_packed_bytes"]),
    )


def floor_results(standing: Standing) -> tuple[FloorResult, ...]:
    """Every floor with its confirmed network, if it has one."""
    return tuple(_result(standing, floor) for floor in standing.study.floors)


def shown_network(standing: Standing, shown: Shown) -> Network:
    """What the page goes into, as the table of networks has it."""
    return _network(standing, shown.run, f"{shown.label.partition(',')[0]}, not confirmed")


def layer_rows(shown: Shown) -> tuple[LayerRow, ...]:
    """Prunable tensors in the model's order, then all others together, then what is no tensor."""
    contents, size = file_contents(shown.file, shown.packed.model), measure_size(shown.packed.model)
    rows = [
        LayerRow(name=each.name, parameters=each.parameters, kept=each.nonzero, bytes=contents.tensors[each.name])
        for each in size.layers
        if each.prunable
    ]
    others = [each for each in size.layers if not each.prunable]
    named = {row.name for row in rows}
    small = LayerRow(
        name="other tensors, such as biases and normalisation",
        parameters=sum(each.parameters for each in others),
        kept=sum(each.nonzero for each in others),
        bytes=sum(taken for name, taken in contents.tensors.items() if name not in named),
    )
    return (*rows, small, LayerRow(name="header and checksums", parameters=None, kept=None, bytes=contents.rest))


def next_steps(standing: Standing) -> tuple[Step, ...]:
    """What there is to do, the most urgent first."""
    study, winners, read = standing.study, standing.winners, standing.registered
    steps = []
    if not standing.decided:
        steps.append(_to_the_end(study))
    elif not winners:
        steps.append(Step(text=_sentence(study.shortfall())))
    steps += [
        Step(text=f"For the floor of {percent(floor)}, add trials or finetune_epochs, or allow a larger max_drop.")
        for floor, won in standing.confirmed.items()
        if won is None and winners
    ]
    if any(won.run.run_id not in read for won in winners):
        text = "Register what is confirmed: it and the dense network are then evaluated on test, once:"
        steps.append(Step(text=text, command=register_command(study)))
    for won in winners:
        steps += _use(read[won.run.run_id], won) if won.run.run_id in read else []
    return (*steps, *_search_on(study))


def _to_the_end(study: FoundStudy) -> Step:
    if study.run.params["search.confirm_seeds"] == "0":
        text = "Finetune the smallest trials again with fresh seeds, and accept one by its lower bound:"
        return Step(text=text, command=search_command(study, confirm_seeds=2))
    text = "Go on with the study: at its end the smallest candidate is accepted whose lower bound is at the floor."
    return Step(text=text, command=search_command(study))


def _use(registered: tracking.FoundRun, won: Winner) -> list[Step]:
    uri = version_uri(registered)
    if uri is None:
        return []
    text = f"Use the network for the floor of {percent(won.floor)}:"
    return [Step(text=text, command=f'mlflow.pyfunc.load_model("{uri}")')]


def _search_on(study: FoundStudy) -> list[Step]:
    """More trials, where the smallest one at the floor came late."""
    best, number = study.best, len(study.trials)
    if best is None or number < ENOUGH:
        return []
    at = 1 + next(i for i, trial in enumerate(study.trials) if trial.run_id == best.run_id)
    if at <= LATE * number:
        return []
    text = f"The smallest trial at the floor was number {at} of {number}, so more trials may well find a smaller one."
    return [Step(text=text, command=search_command(study, trials=2 * number))]


def _shown(study: FoundStudy, label: str, run: tracking.FoundRun) -> Shown:
    file = artifacts.read_artifact(run.run_id, PACKED_FILE)
    return Shown(label, run, study.read(file), file)


def _result(standing: Standing, floor: float) -> FloorResult:
    won = standing.confirmed.get(floor)
    if won is None:
        return FloorResult(floor=floor, network=None)
    label = "pruned" if len(standing.study.floors) == 1 else f"floor {percent(floor)}"
    network = _network(standing, won.run, label)
    return FloorResult(
        floor=floor,
        network=network,
        seeds=won.seeds,
        accuracies=won.accuracies,
        average=won.average,
        averaged=won.averaged,
        lower=won.lower,
    )


def _network(standing: Standing, run: tracking.FoundRun, label: str) -> Network:
    read = standing.registered.get(run.run_id)
    return Network(
        label=label,
        val=val_accuracy(standing.study, run.metrics),
        test=_test(read.metrics) if read else None,
        change=logged_change(read.metrics) if read else None,
        nonzero_bytes=int(run.metrics["nonzero_bytes"]),
        packed_bytes=int(run.metrics["packed_bytes"]),
    )


def val_accuracy(study: FoundStudy, metrics: Mapping[str, float], prefix: str = "") -> Accuracy:
    """An accuracy on the study's validation images, from a run's metrics."""
    return _accuracy(metrics, f"{prefix}val_accuracy", study.run.metrics["val_images"])


def _test(metrics: Mapping[str, float], prefix: str = "") -> Accuracy:
    return _accuracy(metrics, f"{prefix}test_accuracy", metrics["test_images"])


def _accuracy(metrics: Mapping[str, float], name: str, images: float) -> Accuracy:
    return Accuracy(value=metrics[name], se=metrics[f"{name}_se"], images=int(images))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
