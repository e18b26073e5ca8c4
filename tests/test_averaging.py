"""The mean of networks: of their weights, and as good as what it is said to be."""

import copy
from dataclasses import replace

import pytest
import torch

from netprune.averaging import average
from netprune.candidate import Subject, average_candidate
from netprune.evaluation import evaluate
from netprune.packing import unpack
from netprune.pruning import finetuning, prune_and_finetune
from netprune.quantise import Values
from netprune.recalibration import recalibrate
from netprune.weights import prunable_weights, weights_digest

SPARSITY = {"conv2.0.weight": 0.5, "conv3.0.weight": 0.9}


@pytest.fixture
def finetuned(trained_net, tiny_dataset):
    """Two networks, pruned alike and finetuned with other seeds."""
    configs = (finetuning(2, batch_size=16, seed=seed) for seed in (1, 2))
    return [prune_and_finetune(trained_net, tiny_dataset, SPARSITY, config) for config in configs]


def test_average_has_the_mean_of_all_weights_and_the_zeros_in_common(finetuned):
    before = [weights_digest(network) for network in finetuned]
    made = average(finetuned)
    for name, parameter in made.named_parameters():
        one, other = (dict(network.named_parameters())[name] for network in finetuned)
        torch.testing.assert_close(parameter, (one + other) / 2)
    for name, sparsity in SPARSITY.items():
        weight = prunable_weights(made)[name]
        assert (weight == 0).float().mean() == pytest.approx(sparsity, abs=1 / weight.numel())
    assert [weights_digest(network) for network in finetuned] == before
    assert weights_digest(made) not in before


def test_average_of_one_network_is_that_network(finetuned):
    assert weights_digest(average(finetuned[:1])) == weights_digest(finetuned[0])


def test_average_of_the_largest_numbers_stays_finite(finetuned):
    for network in finetuned:
        network.register_buffer("mask", torch.full((3,), torch.finfo(torch.float32).min))
    assert torch.equal(average(finetuned).mask, finetuned[0].mask)


@pytest.mark.parametrize("values", ["fp32", "int8", "codebook:3"])
def test_average_candidate_is_scored_as_its_file_loads(trained_net, tiny_dataset, tiny_header, finetuned, values):
    config = finetuning(2, batch_size=16, values=Values.parse(values))
    result, data = average_candidate(Subject(trained_net, tiny_dataset, tiny_header), SPARSITY, finetuned, config)
    loaded = unpack(data).model
    assert evaluate(loaded, tiny_dataset.val, tiny_dataset) == result.val
    assert result.packed_bytes == len(data)
    assert result.measured["conv3.0.weight"] == pytest.approx(0.9, abs=0.02 if values == "fp32" else 0.1)
    if values == "fp32":
        expected = average(finetuned)
        recalibrate(expected, tiny_dataset)
        assert weights_digest(loaded) == weights_digest(expected)
        stale = average(finetuned)
        assert weights_digest(stale) != weights_digest(expected), "batch statistics are taken again"


def test_average_of_networks_of_two_dense_ones_is_worse_than_both(trained_net, tiny_dataset):
    # what the mean of weights takes: a start in common
    mirrored = copy.deepcopy(trained_net)
    order = torch.arange(mirrored.conv1[0].out_channels).flip(0)
    with torch.no_grad():  # the same function, with its first channels the other way round
        for module in (mirrored.conv1[0], mirrored.conv1[1]):
            for tensor in module.state_dict().values():
                if tensor.dim():
                    tensor.copy_(tensor[order].clone())
        weight = mirrored.conv2[0].weight
        weight.copy_(weight[:, order].clone())
    same = evaluate(mirrored, tiny_dataset.val, tiny_dataset).accuracy
    assert same == evaluate(trained_net, tiny_dataset.val, tiny_dataset).accuracy
    mean = average([trained_net, mirrored])
    recalibrate(mean, tiny_dataset)
    assert (
        evaluate(mean, tiny_dataset.val, tiny_dataset).loss
        > 2 * evaluate(trained_net, tiny_dataset.val, tiny_dataset).loss
    )


def test_average_candidate_without_finetuning_trains_no_codebook(trained_net, tiny_dataset, tiny_header):
    config = replace(finetuning(0), values=Values.parse("codebook:3"))
    first, _ = average_candidate(Subject(trained_net, tiny_dataset, tiny_header), {}, [trained_net], config)
    again, _ = average_candidate(Subject(trained_net, tiny_dataset, tiny_header), {}, [trained_net], config)
    assert first.val == again.val
