"""The dense network that a stage starts from, with its data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from netprune.bounds import Bounds, find_bounds
from netprune.candidate import Subject
from netprune.data import Dataset
from netprune.errors import InputError
from netprune.factory import find_factory
from netprune.header import PackedHeader, header_for
from netprune.models import MODELS, Architecture, build_model
from netprune.weights import load_weights, prunable_weights, read_state_dict, weights_digest
from sweeps import registry, tracking
from sweeps.stages.data import AUTO, NORMALISATION, DataRequest, open_data


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRequest:
    """Which dense network, a model of the store or a plain state dict with its architecture, and what may be pruned."""

    model_uri: str = ""
    weights: str = ""
    model: str = "net10"
    """`net10`, `vgg16`, or `module:function` for a network of the user's own class: see `factory`."""
    width: int = 128
    adapt_head: bool = False
    keep: str = ""
    """Patterns of layers that are never pruned: see `bounds.find_bounds`."""
    limit: str = ""
    """Patterns with a largest sparsity: see there."""

    @property
    def own(self) -> str:
        """`module:function`, if that is what `model` names; else empty."""
        return self.model if ":" in self.model else ""


@dataclass(frozen=True, slots=True)
class Source:
    """A dense network, ready for work, with its data."""

    model: nn.Module
    """On the device that holds `dataset`."""
    header: PackedHeader
    dataset: Dataset
    data: DataRequest
    """As resolved."""
    origin: str
    """The URI or file it came from."""
    asked: SourceRequest = field(default_factory=SourceRequest)
    """As the user named it."""
    bounds: Bounds | None = None
    """Which layers may be pruned, and how far; None: all, altogether."""
    data_named: bool = True
    """Whether the user named the data; else they are what the network was trained on."""

    @property
    def subject(self) -> Subject:
        """As candidates are made of it."""
        return Subject(self.model, self.dataset, self.header)

    @property
    def own(self) -> str:
        """`module:function` that builds it, if it is of the user's own class; else empty."""
        return "" if self.header.architecture else self.asked.own

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the weights that are never pruned."""
        bounds = self.bounds
        return () if bounds is None else tuple(n for n in prunable_weights(self.model) if n not in bounds.sizes)

    @property
    def label(self) -> str:
        """What a list of runs calls it: architecture and first digits of the digest."""
        return f"{short_name(self.header.architecture, self.own)}-{self.header.dense_digest[:8]}"

    def record(self) -> dict[str, str]:
        """Params that say what was worked on."""
        how = {"keep": self.asked.keep, "limit": self.asked.limit}
        how |= {"adapt_head": str(True)} if self.asked.adapt_head else {}
        how |= self.data.normalised
        return {
            "model": self.own or short_name(self.header.architecture),
            "origin": self.origin,
            **{name: text for name, text in how.items() if text},
            "dataset": self.data.dataset,
            "image_size": str(self.dataset.image_size),
            "data_dir": self.data.data_dir,
            "device": str(next(self.model.parameters()).device),
            "weights_digest": self.header.dense_digest,
        }


def short_name(architecture: Architecture | None, own: str = "") -> str:
    """`net10-w16`, `vgg16`; for a network of the user's own class the name of the function that builds it."""
    if architecture is None:
        return own.rpartition(":")[2] or "network"
    return f"{architecture.name}-w{architecture.width}" if architecture.name == "net10" else architecture.name


def open_source(source: SourceRequest, data: DataRequest) -> Source:
    """Load the dense network and its data.

    The data set `auto` is the one that the network was trained on, as its run says; cifar10 for a plain state dict.

    Raises:
        InputError: if both or neither of the sources can be found, the weights do not fit, or `keep` or `limit` cannot
            be heeded.
    """
    if source.weights and source.model_uri:
        raise InputError("weights and model_uri are both given: name one dense model.")
    found = _from_weights(source, data) if source.weights else _from_store(source, data)
    return replace(found, asked=source, bounds=find_bounds(found.model, source.keep, source.limit))


def _from_store(source: SourceRequest, data: DataRequest) -> Source:
    uri = source.model_uri or newest_dense_model()
    packed, run_id = registry.fetch_model(uri, source.model)
    known = _trained_on(run_id) if run_id and data.dataset == AUTO else {}
    if data.data_dir != AUTO:
        known.pop("data_dir", None)
    if data.dataset == AUTO and "dataset" not in known:
        raise InputError(f"the run behind {uri} does not say which data it was trained on: name it with dataset.")
    side = packed.header.image_size
    if data.image_size not in (None, side):
        raise InputError(f"{uri} takes images of {side}×{side}, not {data.image_size}: leave image_size at auto.")
    named = data.dataset != AUTO
    for name in NORMALISATION:
        own = getattr(packed.header, name)
        if getattr(data, name) not in (None, own):
            said = ",".join(f"{each:g}" for each in own)
            raise InputError(f"{uri} takes images normalised with {name} {said}: leave {name} at auto.")
    data = replace(data, **known, mean=packed.header.mean, std=packed.header.std, image_size=side).resolved()
    dataset, device = open_data(data)
    if len(dataset.classes) != len(packed.header.classes):
        raise InputError(
            f"{uri} has {len(packed.header.classes)} classes and {dataset.name} has {len(dataset.classes)}: "
            f"name the data it was trained on with dataset."
        )
    header = replace(packed.header, dense_digest=weights_digest(packed.model))
    return Source(packed.model.to(device), header, dataset, data, uri, data_named=named)


def _from_weights(source: SourceRequest, data: DataRequest) -> Source:
    state = read_state_dict(source.weights)
    check_model(source)
    data = replace(data, dataset="cifar10" if data.dataset == AUTO else data.dataset).resolved()
    dataset, device = open_data(data)
    model, architecture = new_network(source, dataset)
    load_weights(model, state, adapt_head=source.adapt_head)
    header = header_for(model, dataset, architecture)
    return Source(model.to(device), header, dataset, data, str(Path(source.weights).resolve()))


def check_model(source: SourceRequest) -> None:
    """Refuse a model that cannot be, before the data are loaded.

    Raises:
        InputError: for an unknown name or a width below 1; as `find_factory` does for a network of the user's own.
    """
    if source.own:
        find_factory(source.own)
    elif source.model in MODELS:
        Architecture(name=source.model, num_classes=2, width=source.width)
    else:
        raise InputError(
            f"unknown model {source.model!r}: choose one of {', '.join(sorted(MODELS))}, or name a function that "
            f"builds a network of your own, as module:function."
        )


def new_network(source: SourceRequest, dataset: Dataset, seed: int = 0) -> tuple[nn.Module, Architecture | None]:
    """A fresh network for a data set, and how it was built; None for one of the user's own class.

    Raises:
        InputError: if it does not fit the data: their classes or the size of the images.
    """
    if source.own:
        return find_factory(source.own).build(len(dataset.classes), dataset.image_size, seed), None
    architecture = Architecture(name=source.model, num_classes=len(dataset.classes), width=source.width)
    return build_model(architecture, seed, dataset.image_size), architecture


def newest_dense_model() -> str:
    """The run id of the newest finished training in the store.

    Raises:
        InputError: if there is none.
    """
    found = tracking.find_runs({tracking.STAGE: "train"}, limit=1)
    if not found:
        raise InputError(
            "there is no dense model in the store: train one with `mlflow run . -e train`, or name one with "
            "model_uri or weights."
        )
    return found[0].run_id


def _trained_on(run_id: str) -> dict[str, str]:
    """The data of the run that made a model, from its stage's own params."""
    run = tracking.find_run(run_id)
    stage = run.tags.get(tracking.STAGE, "")
    names = {name: f"{stage}.{name}" for name in ("dataset", "data_dir")}
    return {name: run.params[param] for name, param in names.items() if param in run.params}
