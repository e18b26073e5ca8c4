"""Where a packed file's bytes go: every byte once, and to the tensor that takes it."""

import pytest
import torch

from netprune.contents import file_contents
from netprune.masks import apply_masks, make_masks
from netprune.models import Architecture, build_model
from netprune.packing import pack, unpack
from netprune.quantise import Values, quantise
from netprune.weights import prunable_weights


@pytest.fixture
def net():
    """Net10 of width 8 with different sparsities."""
    model = build_model(Architecture(name="net10", num_classes=3, width=8), seed=1)
    sparsity = {name: 0.1 * (1 + i % 9) for i, name in enumerate(prunable_weights(model))}
    apply_masks(model, make_masks(model, sparsity))
    return model


@pytest.fixture
def header(tiny_header):
    return type(tiny_header)(
        architecture=Architecture(name="net10", num_classes=3, width=8),
        classes=tiny_header.classes,
        mean=tiny_header.mean,
        std=tiny_header.std,
        dense_digest="",
    )


@pytest.mark.parametrize("values", ["fp32", "fp16", "codebook:4"])
def test_file_contents_of_any_values_add_up_to_the_file(net, header, values):
    quantise(net, Values.parse(values))
    data = pack(net, header)
    found = file_contents(data, unpack(data).model)
    assert sum(found.tensors.values()) + found.rest == pytest.approx(len(data))
    assert found.tensors.keys() == net.state_dict().keys()
    assert min(found.tensors.values()) >= 0
    assert 0 < found.rest < 2500


def test_file_contents_of_a_weight_are_what_the_file_loses_without_it(net, header):
    data = pack(net, header)
    found = file_contents(data, net).tensors
    for name in ("res1.0.0.weight", "res2.1.0.weight", "conv1.0.weight"):
        without = unpack(data).model
        with torch.no_grad():
            without.get_parameter(name).zero_()
        assert found[name] == pytest.approx(len(data) - len(pack(without, header)), rel=0.02, abs=60)


def test_file_contents_of_biases_are_shared_by_their_number_of_values(net, header):
    found = file_contents(pack(net, header), net).tensors
    assert found["conv2.0.bias"] == pytest.approx(2 * found["conv1.0.bias"])


def test_file_contents_of_another_network_are_refused(net, header):
    data = pack(net, header)
    other = unpack(data).model
    with torch.no_grad():
        other.get_parameter("classifier.4.bias").add_(1)
    with pytest.raises(ValueError, match="another network"):
        file_contents(data, other)
