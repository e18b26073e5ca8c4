"""State dicts: which weights may be pruned, reading a file of them, loading them into a network, adapting its head."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from netprune.errors import InputError

StateDict = Mapping[str, Tensor]
WITHOUT_VALUES = "build it without extra state, on a device, and give it a batch first if its layers are lazy."
"""The mend for a state that holds something else than values."""


def prunable_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weight tensors that pruning may touch: of `Conv2d` and `Linear` layers, in the model's order.

    All other tensors are left alone. Biases and normalisation parameters are too few to be worth a position each;
    weights of other modules (`Conv1d`, transposed convolutions, embeddings, attention's `in_proj_weight`) may be many,
    and are not pruned either. A tensor that several layers share is one, by its first name.
    """
    return {names[0]: weight for weight, names in _named_weights(model).items()}


def names_of_weights(model: nn.Module) -> dict[str, list[str]]:
    """Name of a prunable weight → all the names that it has, that one first."""
    return {names[0]: names for names in _named_weights(model).values()}


def _named_weights(model: nn.Module) -> dict[Tensor, list[str]]:
    found: dict[Tensor, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Conv2d | nn.Linear):
            found.setdefault(module.weight, []).append(f"{name}.weight" if name else "weight")
    return found


def weights_digest(model: nn.Module) -> str:
    """SHA-256 (hex) of every tensor's name, shape, type and bytes: equal digests, equal networks."""
    return state_digest(model.state_dict())


def state_digest(state: StateDict) -> str:
    """The same of a state dict.

    Raises:
        InputError: if it holds something else than tensors with values.
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if not isinstance(tensor, Tensor) or tensor.is_meta or is_lazy(tensor):
            raise InputError(f"{name} of the network is no tensor with values: {WITHOUT_VALUES}")
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        if tensor.numel():
            sha.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a plain state dict that `torch.save` wrote. Nothing in the file is executed.

    Raises:
        InputError: if the file is absent, is not a torch file, or holds something else than named dense tensors.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of a pickle protocol, then raises
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"weights file {path} does not exist.") from None
    except Exception as error:  # torch's reader raises whatever a damaged file makes it trip over
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a readable state dict (torch.save(model.state_dict(), …)): {first}") from None
    if not isinstance(loaded, Mapping) or not all(map(_is_plain, loaded.values())) or not loaded:
        raise InputError(
            f"{path} does not hold a plain state dict: save one with torch.save(model.state_dict(), path)."
        )
    return {str(name): tensor for name, tensor in loaded.items()}


def _is_plain(value: object) -> bool:
    """Whether it is a tensor of values that another can be filled with."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_quantized)


def load_weights(model: nn.Module, state: StateDict, *, adapt_head: bool = False) -> list[str]:
    """Load `state` into `model` in place, all or nothing.

    Args:
        model: the network to fill.
        state: name → tensor, as `model.state_dict()` gives.
        adapt_head: keep the model's own fresh last layer where its number of classes differs, and load the rest.

    Returns:
        The names of the tensors that were left as they are (the head's, or none).

    Raises:
        InputError: for missing or unexpected names, shapes that differ, NaN, or two tensors that are one in the model;
            it names the layer and both shapes.
    """
    own = model.state_dict()
    differing = differing_head(model, {name: tensor.shape for name, tensor in state.items()})
    if differing and not adapt_head:
        name = differing[0]
        raise InputError(
            f"the head has another number of classes: {name} is {tuple(state[name].shape)} in the file and "
            f"{tuple(own[name].shape)} in the network; --adapt-head replaces the head and loads the rest."
        )
    broken = next((name for name, value in state.items() if value.is_floating_point() and value.isnan().any()), None)
    if broken is not None:
        raise InputError(f"{broken} has a value in the file that is no number: take weights from before they diverged.")
    loaded = {name: own[name] if name in differing else state[name] for name in own}
    require_tied(model, loaded)
    model.load_state_dict(loaded)
    return differing


def tied(state: StateDict) -> dict[str, str]:
    """Name → the first name of the same memory, of those that share one."""
    owners: dict[tuple[Any, ...], str] = {}
    shared = {}
    for name, tensor in state.items():
        memory = tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device
        if tensor.numel() and not tensor.is_meta and owners.setdefault(memory, name) != name:
            shared[name] = owners[memory]
    return shared


def require_tied(model: nn.Module, state: StateDict) -> None:
    """Refuse different values for what is one tensor in the model: the last one would take the others' place.

    Raises:
        InputError: naming two of them.
    """
    for name, other in tied(model.state_dict()).items():
        if state_digest({"": state[name]}) != state_digest({"": state[other]}):  # NaN are equal there
            raise InputError(
                f"the weights do not fit: {other} and {name} are one tensor in the network and two different ones in "
                f"the file; build the network without sharing them."
            )


def differing_head(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """The tensors of the last layer, by name, of which a state dict has another number of classes; empty where it fits.

    Args:
        model: to be loaded into.
        shapes: name → shape, of the state dict.

    Raises:
        InputError: for missing or unexpected names, or other shapes that differ; it names the layer and both shapes.
    """
    found = model.state_dict()
    state = {name: tuple(shape) for name, shape in shapes.items()}
    missing, unexpected = sorted(found.keys() - state.keys()), sorted(state.keys() - found.keys())
    if missing or unexpected:
        raise InputError(_names_message(missing, unexpected))
    extra = next((name for name, value in found.items() if not isinstance(value, Tensor) or is_lazy(value)), None)
    if extra is not None:
        raise InputError(f"{extra} of the network has no values, so no weights fit it: {WITHOUT_VALUES}")
    own = {name: tuple(tensor.shape) for name, tensor in found.items()}
    differing = [name for name in own if own[name] != state[name]]
    weights = list(prunable_weights(model))
    head = weights[-1].removesuffix("weight") if weights else None
    fatal = [
        name
        for name in differing
        if head is None or not (name.startswith(head) and _differs_in_classes(own[name], state[name]))
    ]
    if fatal:
        name = fatal[0]
        raise InputError(
            f"the weights do not fit: {name} is {state[name]} in the file and {own[name]} in the network; check model "
            f"and width."
        )
    return differing


def _differs_in_classes(own: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return len(own) == len(other) and own[1:] == other[1:]


def _names_message(missing: list[str], unexpected: list[str]) -> str:
    parts = []
    for names, what in ((missing, "missing"), (unexpected, "unknown")):
        if names:  # a file's own may hold what moves a terminal's cursor
            shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:3])
            parts.append(f"{len(names)} {what} ({shown}{', …' if len(names) > 3 else ''})")
    return f"the weights are of another network: tensors {' and '.join(parts)}; check model and width."
