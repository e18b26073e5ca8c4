"""Sizes: counted on arrays, apart from torch."""

import pytest
import torch
from torch import nn

from netprune.masks import apply_masks, make_masks
from netprune.models import Architecture, build_model
from netprune.size import LayerSize, ModelSize, measure_size
from netprune.weights import prunable_weights


def test_measure_size_of_a_dense_network_counts_every_parameter(tiny_net):
    size = measure_size(tiny_net)
    assert [layer.name for layer in size.layers] == [name for name, _ in tiny_net.named_parameters()]
    assert size.parameters == sum(p.detach().numpy().size for p in tiny_net.parameters())
    assert size.dense_bytes == 4 * size.parameters
    assert {layer.name for layer in size.layers if layer.prunable} == prunable_weights(tiny_net).keys()


def test_measure_size_of_a_pruned_network_counts_what_is_left(tiny_net):
    apply_masks(tiny_net, make_masks(tiny_net, {"conv1.0.weight": 0.5, "classifier.3.weight": 0.75}))
    size = measure_size(tiny_net)
    arrays = {name: p.detach().numpy() for name, p in tiny_net.named_parameters()}
    assert {layer.name: layer.nonzero for layer in size.layers} == {n: (a != 0).sum() for n, a in arrays.items()}
    assert size.nonzero == sum((a != 0).sum() for a in arrays.values())
    assert size.nonzero_bytes == 4 * size.nonzero
    weights = [arrays[name] for name in prunable_weights(tiny_net)]
    assert size.sparsity == pytest.approx(sum((w == 0).sum() for w in weights) / sum(w.size for w in weights))
    by_name = {layer.name: layer for layer in size.layers}
    assert by_name["conv1.0.weight"].sparsity == 0.5
    assert by_name["classifier.3.weight"].sparsity == 0.75


def test_measure_size_zero_biases_count_as_zeros_but_not_as_sparsity(tiny_net):
    before = measure_size(tiny_net)
    assert before.sparsity == 0  # fresh normalisation biases are zero already
    with torch.no_grad():
        tiny_net.conv1[0].bias.zero_()
    after = measure_size(tiny_net)
    assert before.nonzero - after.nonzero == 2
    assert after.sparsity == 0


def test_measure_size_at_width_128_is_the_documents():
    with torch.device("meta"):
        parameters = dict(build_model(Architecture(name="net10", num_classes=10)).named_parameters())
    size = ModelSize(
        tuple(LayerSize(name=n, parameters=p.numel(), nonzero=0, prunable=True) for n, p in parameters.items())
    )
    assert size.dense_bytes == 4 * 26_793_994
    assert size.sparsity == 1


def test_measure_size_of_a_weight_tied_to_a_module_that_is_not_prunable_counts_it_as_prunable():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False))
    model[1].weight = model[0].weight
    apply_masks(model, make_masks(model, {"1.weight": 0.75}))
    size = measure_size(model)
    assert [(layer.name, layer.prunable) for layer in size.layers] == [("0.weight", True)]
    assert size.sparsity == 0.75
