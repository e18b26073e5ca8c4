"""Biases that normalisation takes away again: moved into its statistics, because zeros cost a file nothing."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Iterator
from typing import TypeGuard, TypeVar

import torch
from torch import fx, nn

Kind = TypeVar("Kind", bound=nn.Module)


@torch.no_grad()
def fold_biases(model: nn.Module) -> None:
    """Move convolutions' biases into the running means of the normalisations that follow them, in place.

    The network computes what it did: (x + b) - m = x - (m - b), and normalising by a batch's own mean takes b away
    altogether. Only where traces of the network, in train mode and in eval mode, show that the normalisation alone is
    given what the convolution computes, and neither has hooks, runs twice, or shares bias or mean with another module.
    A network that cannot be traced keeps its biases.
    """
    for conv_name, norm_name in _foldable(model, True) & _foldable(model, False):
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert conv.bias is not None
        assert norm.running_mean is not None
        norm.running_mean -= conv.bias
        conv.bias.zero_()


def _foldable(model: nn.Module, training: bool) -> set[tuple[str, str]]:
    """Names of convolutions, each with the name of its normalisation, as a trace in that mode has them."""
    probe, tracer = copy.deepcopy(model).train(training), fx.Tracer()  # a copy: what runs may keep what it is given
    tracer.proxy_buffer_attributes = True  # so that the graph says who reads a running mean
    named = (*probe.named_parameters(remove_duplicate=False), *probe.named_buffers(remove_duplicate=False))
    own = {name for name, _ in named}
    try:
        graph = tracer.trace(probe)
    except Exception:  # torch.fx raises what the model's own code trips over
        return set()
    if any(node.op == "get_attr" and str(node.target) not in own for node in graph.nodes):
        return set()  # a tensor by another way than its name: it may be any bias
    called = [probe.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"]
    read = [functools.reduce(getattr, str(n.target).split("."), probe) for n in graph.nodes if n.op == "get_attr"]
    held = [t for module in probe.modules() for t in (*module.parameters(False), *module.buffers(False))]
    uses = Counter(map(id, (*called, *read, *held)))
    return {
        (str(conv_node.target), str(norm_node.target))
        for conv_node, norm_node in _in_a_row(graph)
        if _cancel(probe.get_submodule(str(conv_node.target)), probe.get_submodule(str(norm_node.target)), uses)
    }


def _in_a_row(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Calls of two modules of which the second alone is given what the first computes."""
    for node in graph.nodes:
        if node.op == "call_module" and len(node.all_input_nodes) == 1:
            (before,) = node.all_input_nodes
            if before.op == "call_module" and list(before.users) == [node]:
                yield before, node


def _cancel(conv: nn.Module, norm: nn.Module, uses: Counter[int]) -> bool:
    """Whether `norm` takes the bias of `conv` away, and no one else sees bias, mean, or what comes between."""
    if not (_runs_as(conv, nn.Conv2d) and _runs_as(norm, nn.BatchNorm2d)):
        return False
    # a bias that is computed, as by a parametrisation, is no parameter
    if not isinstance(conv.bias, nn.Parameter) or norm.running_mean is None:
        return False
    return all(uses[id(each)] == 1 for each in (conv, norm, conv.bias, norm.running_mean))


def _runs_as(module: nn.Module, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether a module is of that kind and computes what it does: a subclass or a hook may do something else."""
    hooks = (*module._forward_hooks, *module._forward_pre_hooks)
    return isinstance(module, kind) and type(module).forward is kind.forward and not hooks
