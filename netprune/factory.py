"""Networks of the user's own class, built by a function of the user's: `package.module:function`.

**What is imported, and on whose word.** A packed file names no class, and nothing is imported on its account: it is
loaded into a network that the reader builds. A name of a function is taken from two places only: from the command line
of the very command that needs the network, as the user typed it; and from the description of an MLflow model that is
loaded through MLflow, which runs the code that travels with a model in any case (`pyfunc`). Runs record the name, but a
record is never imported: it only goes into the sentence that asks the user for it. Whoever may write to a tracking
server must not choose what runs on the machines of those who read from it; and a name such as `deploy:main` would do.
Whether the network that the user names is the right one is told by the tensors: a file fits, or is refused.
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from netprune.errors import InputError
from netprune.evaluation import eval_mode
from netprune.header import PackedHeader
from netprune.packing import Builder, plain_state
from netprune.weights import prunable_weights

EXAMPLE = "mynet:network"
TRIED = 2
"""Images that a new network is tried on."""
SHAKEN = 0.1
"""By how much of their mean size its parameters are changed before its state dict is held to be all there is."""
SAME = 1e-5
"""Of the largest output: by so much two networks of the same weights may differ, which round in another order."""


@dataclass(frozen=True, slots=True)
class Factory:
    """A function that makes a network for a number of classes."""

    name: str
    """`package.module:function`."""
    function: Callable[[int], Any]

    def build(self, num_classes: int, image_size: int = 32, seed: int = 0) -> nn.Module:
        """A fresh network, the same for the same seed of torch's, that has been tried on images of that size.

        It takes `(N, 3, S, S)` and gives `(N, num_classes)` in train and in eval mode, can be trained, copied, packed
        and loaded into, has weights to prune, and all that its outputs depend on is in its state dict. Torch's global
        generator is left as it was.

        Args:
            num_classes: what the function is called with, at least 2.
            image_size: S, in pixels.
            seed: of the first weights.

        Raises:
            InputError: saying which of these does not hold, and the mend.
        """
        # it may build on a GPU; one that is not in use yet has no state to keep
        gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)  # type: ignore[no-untyped-call]
        with torch.random.fork_rng(devices=gpus):
            network = self._made(num_classes, seed)
            _check(network, self.name, num_classes, image_size)
            _check_state(network, self._made(num_classes, seed + 1), self.name, image_size)
        return network

    def _made(self, num_classes: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        try:
            network = self.function(num_classes)
        except Exception as error:  # the user's own code
            raise InputError(
                f"{self.name} failed when it was called with {num_classes}, the number of classes: {_said(error)}."
            ) from error
        if not isinstance(network, nn.Module):
            raise InputError(
                f"{self.name} gave a {type(network).__name__}: it has to return a torch.nn.Module, with {num_classes} "
                f"outputs."
            )
        return network


def find_factory(name: str) -> Factory:
    """The function of that name. Its module is imported; the working directory counts.

    Raises:
        InputError: for a name of another form, a module that is not there or cannot be imported, or one without such a
            function.
    """
    module_name, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        raise InputError(f"model is {name!r}; a network of your own is named module:function, such as {EXAMPLE}.")
    module = _imported(module_name)
    function = getattr(module, attribute, None)
    if not callable(function):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise InputError(f"{module_name} has no function {attribute}: it has {', '.join(known) or 'none'}.")
    return Factory(name, function)


def builder(name: str, recorded: str = "") -> Builder:
    """What the network of a packed file without an architecture is built by: the function of that name and no other.

    Args:
        name: `package.module:function`; anything else names none, and such files are then refused.
        recorded: what the file's run calls it, if there is one: the sentence that refuses it says so.
    """

    def build(header: PackedHeader) -> nn.Module:
        if ":" not in name:
            raise InputError(
                f"this file holds a network of the user's own class: name the function that builds it with model, such "
                f"as {recorded if ':' in recorded else EXAMPLE}{' (so its run says)' if ':' in recorded else ''}."
            )
        # it may build on a GPU: a packed network is on the CPU, whoever built it
        return find_factory(name).build(len(header.classes), header.image_size).cpu()

    return build


def _imported(name: str) -> ModuleType:
    here = os.getcwd()
    if not {here, ""} & set(sys.path):
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{name}.".startswith(f"{missing}."):
            file = f"{name.replace('.', '/')}.py"
            raise InputError(f"there is no module {missing}: put {file} into {here}, or install it.") from None
        raise InputError(f"{name} cannot be imported: {_said(error)}.") from error
    except (Exception, SystemExit) as error:  # the user's own code
        raise InputError(f"{name} cannot be imported: {_said(error)}.") from error


def _check(network: nn.Module, name: str, num_classes: int, image_size: int) -> None:
    with eval_mode(network):
        _try(network, name, num_classes, image_size)
        _try(network, name, num_classes, image_size, count=1)  # as the last batch of a split may be
    weights = prunable_weights(network)
    if not weights:
        raise InputError(f"{name} has no Conv2d and no Linear layer, so there is nothing to prune.")
    computed = sorted(weights.keys() - dict(network.named_parameters(remove_duplicate=False)).keys())
    if computed:
        raise InputError(
            f"{computed[0]} of {name} is computed from other tensors, so it cannot be pruned: build the network "
            f"without that parametrisation (weight_norm and its like)."
        )
    plain_state(network)
    try:
        training = copy.deepcopy(network).train()
    except Exception as error:
        raise InputError(f"{name} cannot be copied by copy.deepcopy, as pruning does: {_said(error)}.") from error
    try:
        training.load_state_dict(copy.deepcopy(training.state_dict()))
    except Exception as error:  # torch names the tensor in the last line, and a hook of the user's raises what it likes
        last = str(error).strip().rpartition("\n")[2].strip().rstrip(".") or type(error).__name__
        raise InputError(
            f"{name} cannot load its own state_dict, as the end of a training does: {last}. A buffer that .expand made "
            f"needs .clone() after it."
        ) from error
    _try(training, name, num_classes, image_size)  # which some networks give something else in
    try:
        with torch.enable_grad():
            training(_zeros(training, TRIED, image_size)).sum().backward()
    except Exception as error:
        raise InputError(
            f"{name} cannot be trained, its gradients fail ({_said(error)}): look for operations in place (x *= 2 in "
            f"place of x = x * 2), and for parameters that are all frozen."
        ) from error


@torch.no_grad()
def _check_state(network: nn.Module, other: nn.Module, name: str, image_size: int) -> None:
    """Refuse a network whose outputs depend on more than its state dict: its file would load as another network.

    It is looked at as a training would leave it: with other values in every parameter, for zeros hide what they are
    multiplied by, and after a pass in train mode, which is when some keep statistics of their own.

    Args:
        network: to be checked; left as it is.
        other: made as it was, with other first weights; it gets the network's.
        name: of the function that made both.
        image_size: in pixels.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(TRIED, 3, image_size, image_size, generator=generator)
    network = copy.deepcopy(network).train()
    for parameter in network.parameters():
        if parameter.is_floating_point():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise, alpha=SHAKEN * (float(parameter.abs().mean()) or 1.0))
    try:
        network(images.to(_device(network)))
    except Exception as error:
        raise InputError(f"{name} fails on random images in train mode ({_said(error)}): mend it.") from error
    try:
        other.load_state_dict(copy.deepcopy(network.state_dict()))
    except Exception as error:
        raise InputError(
            f"{name} does not build one and the same network each time it is called, so that a file of one cannot be "
            f"loaded: {_said(error)}."
        ) from error
    first, again, loaded = (_outputs(one, images) for one in (network, network, other))
    if not torch.equal(first, again):
        return  # by chance of its own, and nothing can be told by its outputs
    if not torch.allclose(first, loaded, rtol=0, atol=SAME * float(first.abs().max()), equal_nan=True):
        raise InputError(
            f"{name} builds networks with tensors that are not in their state_dict, and would be lost with a file: "
            f"make each of them a parameter, or a buffer with self.register_buffer(name, tensor), without "
            f"persistent=False."
        )


def _outputs(network: nn.Module, images: Tensor) -> Tensor:
    """In eval mode, on the CPU, with the same draws from torch's generator each time."""
    torch.manual_seed(0)
    with eval_mode(network):
        outputs: Tensor = network(images.to(_device(network)))
    return outputs.cpu()


def _device(network: nn.Module) -> torch.device:
    return next((tensor.device for tensor in network.parameters()), torch.device("cpu"))


@torch.no_grad()
def _try(network: nn.Module, name: str, num_classes: int, image_size: int, count: int = TRIED) -> None:
    try:
        outputs = network(_zeros(network, count, image_size))
    except Exception as error:  # the user's own code
        raise InputError(
            f"{name} fails on images of {image_size}×{image_size} pixels ({_said(error)}): take another image_size, or "
            f"mend it."
        ) from error
    if not isinstance(outputs, Tensor) or outputs.shape != (count, num_classes):
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        mend = "use its argument for the last layer" if count > 1 else "let no .squeeze() take the batch's axis away"
        raise InputError(
            f"{name} gives {found} for {count} image{'s' if count > 1 else ''} and {num_classes} classes; it has to "
            f"give a tensor of {(count, num_classes)}, in train mode too: {mend}."
        )


def _zeros(network: nn.Module, count: int, image_size: int) -> Tensor:
    return torch.zeros(count, 3, image_size, image_size, device=_device(network))


def _said(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0].rstrip('.')}" if text else type(error).__name__
