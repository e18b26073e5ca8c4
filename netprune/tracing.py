"""Running a network from the middle: what comes before a layer does not change when only that layer is pruned.

A traced network is a list of nodes. Pruning layer k changes the nodes that use its weight and all that follow from
them; everything else has the dense network's values, which are computed once for a batch and used again for every
sparsity of every layer. The saving is bounded by how the work is spread: for Net10 it is 2.09×.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument

from netprune.weights import prunable_weights

Rest = Callable[[int], Tensor]
"""Index of a batch → the network's outputs for it, with the weights as they are now."""
IN_PLACE_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


@dataclass(frozen=True, slots=True)
class _Stage:
    """When a layer can be visited, and what has to run then."""

    layer: str
    ready: int
    """Nodes that the dense network must have run."""
    rest: tuple[fx.Node, ...]
    """What depends on the layer, in order."""


class WholePasses:
    """The plain way: every visit runs the whole network."""

    def __init__(self, model: nn.Module, reason: str) -> None:
        self.model, self.layers, self.reason = model, tuple(prunable_weights(model)), reason

    def stages(self, batches: Sequence[Tensor]) -> Iterator[tuple[str, Rest]]:
        """Each layer with the function that runs the network for one of the batches."""
        for layer in self.layers:
            # a copy: a network may change its input, and the batch is shown again
            yield layer, lambda index: self.model(batches[index].clone())


class PrefixReuse:
    """The dense prefix once for a batch, and only what depends on the layer for every visit."""

    reason = ""

    def __init__(self, model: nn.Module) -> None:
        """Trace `model`, which must be in eval mode and stays with this object: its `inplace` flags are cleared.

        Raises:
            Exception: whatever torch.fx meets in a model that it cannot trace.
        """
        graph = fx.Tracer().trace(model)
        copies = _without_in_place(graph, model)
        self.model = model
        self.module = fx.GraphModule(model, graph)
        self.nodes = list(self.module.graph.nodes)
        self.plan = self._plan(model, copies)
        self.last_use = self._last_use()

    def _plan(self, model: nn.Module, copies: set[str]) -> list[_Stage]:
        order = {node: i for i, node in enumerate(self.nodes)}
        plan = []
        for layer, weight in prunable_weights(model).items():
            changed: set[fx.Node] = set()
            for node in self.nodes:
                if self._uses(node, weight) or not changed.isdisjoint(node.all_input_nodes):
                    changed.add(node)
                    # what an operation in place writes into is made anew for every visit
                    changed.update(used for used in node.all_input_nodes if used.name in copies)
            rest = tuple(sorted(changed, key=order.__getitem__))
            kept = [order[n] for node in rest for n in node.all_input_nodes if n not in changed]
            # a layer that nothing depends on still has outputs: the dense ones
            ready = 1 + max([*kept, order[rest[0]] - 1]) if rest else len(self.nodes)
            plan.append(_Stage(layer, ready, rest))
        return sorted(plan, key=lambda stage: stage.ready)

    def _uses(self, node: fx.Node, weight: Tensor) -> bool:
        if node.op == "call_module":
            return any(p is weight for p in self.module.get_submodule(str(node.target)).parameters())
        return node.op == "get_attr" and _attribute(self.module, str(node.target)) is weight

    def _last_use(self) -> dict[fx.Node, int]:
        """Node → how many nodes must have run before its value may be forgotten."""
        last = {n: i + 1 for i, node in enumerate(self.nodes) for n in node.all_input_nodes}
        for stage in self.plan:
            for node in stage.rest:
                for needed in node.all_input_nodes:
                    last[needed] = max(last.get(needed, 0), stage.ready)
        last[self.nodes[-1]] = len(self.nodes)
        return last

    def stages(self, batches: Sequence[Tensor]) -> Iterator[tuple[str, Rest]]:
        """Each layer, in the order in which the network comes to them, with the function that runs what follows.

        While a layer is visited its weight may be anything; when the next one is asked for, all weights must be dense
        again.
        """
        values: list[dict[fx.Node, object]] = [{} for _ in batches]
        done = 0
        for stage in self.plan:
            for node_values, images in zip(values, batches, strict=True):
                for i in range(done, stage.ready):
                    self._run(self.nodes[i], node_values, images)
                    for node in [n for n in node_values if self.last_use.get(n, 0) < i + 1]:
                        del node_values[node]
            done = max(done, stage.ready)
            yield stage.layer, self._rest(stage, values, batches)

    def _rest(self, stage: _Stage, values: list[dict[fx.Node, object]], batches: Sequence[Tensor]) -> Rest:
        uses = _final_uses(stage.rest)

        def run(index: int) -> Tensor:
            own = dict(values[index])
            for node, forget in zip(stage.rest, uses, strict=True):
                self._run(node, own, batches[index])
                for spent in forget:
                    del own[spent]
            result = own[self.nodes[-1]]
            assert isinstance(result, Tensor)
            return result

        return run

    def _run(self, node: fx.Node, values: dict[fx.Node, object], images: Tensor) -> None:
        if node.op == "placeholder":
            values[node] = images.clone() if node is self.nodes[0] else node.args[0]
            return
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda used: cast(Argument, values[used]))
        if node.op == "output":
            values[node] = args[0]
        elif node.op == "get_attr":
            values[node] = _attribute(self.module, str(node.target))
        elif node.op == "call_module":
            values[node] = self.module.get_submodule(str(node.target))(*args, **kwargs)
        elif node.op == "call_method":
            values[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            assert callable(node.target)
            values[node] = node.target(*args, **kwargs)


def reuse_prefix(model: nn.Module, images: Tensor) -> PrefixReuse | WholePasses:
    """Trace a copy of `model`, or fall back to whole passes of a copy, with the reason.

    The trace is tried on `images` against the network itself, bit for bit: each layer in turn dense, halved, emptied
    and dense again. So a model which fools the tracer (aliased tensors, values written into, state kept between calls)
    is not scanned wrongly.

    Args:
        model: in fp32; left as it is.
        images: a few normalised images, `(N, C, H, W)`.

    Returns:
        With its own copy of the network as `model`, in eval mode.
    """
    whole = copy.deepcopy(model).eval()
    try:
        traced = PrefixReuse(copy.deepcopy(model).eval())
        differs = _differing_layer(traced, whole, images)
    except Exception as error:  # torch.fx, and a trace that cannot run, raise what the model's own code trips over
        return WholePasses(copy.deepcopy(model).eval(), f"the network cannot be traced ({_first_line(error)})")
    if differs:
        reason = f"the traced network differs from the network itself at {differs}"
        return WholePasses(copy.deepcopy(model).eval(), reason)
    return traced


@torch.no_grad()
def _differing_layer(traced: PrefixReuse, whole: nn.Module, images: Tensor) -> str:
    """The first layer at which the trace gives other outputs than the network; empty if there is none."""
    weights, reference = prunable_weights(traced.model), prunable_weights(whole)
    for layer, rest in traced.stages([images]):
        dense = weights[layer].detach().clone()
        for factor in (1.0, 0.5, 0.0, 1.0):
            weights[layer].copy_(dense * factor)
            reference[layer].copy_(dense * factor)
            if not torch.equal(rest(0), whole(images.clone())):
                return layer
    return ""


def _without_in_place(graph: fx.Graph, model: nn.Module) -> set[str]:
    """Let no node change another's value: kept values are used again.

    A module's `inplace` flag is cleared, an operator becomes its ordinary form, any other operation in place works on
    a copy; whoever used the old value later saw the changed one, and still does.

    Returns:
        The names of the nodes that make those copies.
    """
    copies: set[str] = set()
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if not _in_place(node, model) or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        changed = node.args[0]
        if node.op == "call_function" and node.target in IN_PLACE_OPERATORS:
            node.target = IN_PLACE_OPERATORS[node.target]
        elif node.op != "call_module":
            with graph.inserting_before(node):
                made = graph.call_method("clone", (changed,))
            node.replace_input_with(changed, made)
            copies.add(made.name)
        # nodes are in the order of execution: what comes later saw the change
        later = {user for user in changed.users if order.get(user, -1) > order[node]}
        changed.replace_all_uses_with(node, delete_user_cb=later.__contains__)
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    graph.lint()
    return copies


def _in_place(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.kwargs.get("inplace"):
        return True
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        return node.target in IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
    name = str(node.target)
    return node.op == "call_method" and name.endswith("_") and not name.endswith("__")


def _final_uses(nodes: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """For each node of a run, which of the run's own values nobody needs after it."""
    own = set(nodes)
    last = {used: i for i, node in enumerate(nodes) for used in node.all_input_nodes if used in own}
    spent: list[list[fx.Node]] = [[] for _ in nodes]
    for node, i in last.items():
        spent[i].append(node)
    return spent


def _attribute(module: nn.Module, path: str) -> object:
    value: object = module
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
