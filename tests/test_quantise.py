"""Fewer bits a value: what each kind may hold, the zeros as they were, and codebooks that stay codebooks."""

import copy

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn

from netprune.errors import InputError
from netprune.masks import apply_masks, make_masks
from netprune.packing import pack, unpack
from netprune.quantise import (
    Values,
    entropy_constrained_codebook,
    quantise,
    round_significand,
    settle,
    share_gradients,
)
from netprune.recipes import TrainConfig
from netprune.training import Held, train
from netprune.weights import prunable_weights, weights_digest

KINDS = ["fp32", "fp16", "int8", "codebook:2", "codebook:4", "codebook:8"]


@pytest.fixture
def pruned(tiny_net):
    """`tiny_net` at 50 % sparsity."""
    apply_masks(tiny_net, make_masks(tiny_net, dict.fromkeys(prunable_weights(tiny_net), 0.5)))
    return tiny_net


@pytest.mark.parametrize("text", KINDS)
def test_values_parse_and_str_are_inverse(text):
    assert str(Values.parse(text)) == text


@pytest.mark.parametrize("text", ["", "fp8", "codebook", "codebook:1", "codebook:9", "codebook:04", "int8:3", "FP32"])
def test_values_that_are_unknown_are_refused(text):
    with pytest.raises(InputError, match=r"fp32, fp16, int8, or codebook:2 to codebook:8"):
        Values.parse(text)


def test_values_of_a_kind_and_bits_that_do_not_fit_are_refused():
    for kind, bits in (("codebook", 0), ("fp16", 4)):
        with pytest.raises(InputError):
            Values(kind, bits)


class Shared(nn.Module):
    """Layers as users have them: one of a single weight, and one under two names."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Conv2d(1, 1, 1)
        self.first = nn.Linear(8, 8)
        self.second = self.first
        self.last = nn.Conv2d(2, 4, 3)


@pytest.mark.parametrize("text", KINDS)
def test_quantise_shared_and_single_weights_in_any_layout_is_as_of_plain_ones(text):
    torch.manual_seed(0)
    model = Shared()
    plain = nn.ModuleDict({"scale": model.scale, "first": model.first, "last": model.last})
    plain = copy.deepcopy(plain)
    model.to(memory_format=torch.channels_last)
    for network in (model, plain):
        quantise(network, Values.parse(text))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_quantise_to_fp32_changes_nothing(pruned):
    before = weights_digest(pruned)
    assert quantise(pruned, Values()) == {}
    assert weights_digest(pruned) == before


@pytest.mark.parametrize("text", KINDS[1:])
def test_quantise_keeps_zeros_and_makes_no_negative_ones(pruned, text):
    zeros = {name: weight == 0 for name, weight in prunable_weights(pruned).items()}
    quantise(pruned, Values.parse(text))
    for name, weight in prunable_weights(pruned).items():
        assert (weight[zeros[name]] == 0).all()
        assert not torch.signbit(weight[weight == 0]).any()


def test_quantise_to_fp16_gives_the_nearest_halves(pruned):
    before = {name: weight.detach().half().float() for name, weight in prunable_weights(pruned).items()}
    quantise(pruned, Values.parse("fp16"))
    assert all(torch.equal(weight, before[name]) for name, weight in prunable_weights(pruned).items())


def test_quantise_to_int8_errs_by_half_a_step_of_its_channel(pruned):
    before = copy.deepcopy(pruned)
    quantise(pruned, Values.parse("int8"))
    for name, weight in prunable_weights(pruned).items():
        old, new = prunable_weights(before)[name].flatten(1), weight.flatten(1)
        steps = old.abs().amax(1, keepdim=True) / 127
        # the step that is stored has eight bits, so it is up to 1/256 larger
        assert ((old - new).abs() <= steps * 0.5 * (1 + 1 / 256) + 1e-7 * old.abs().amax()).all()
        assert all(len(row.unique()) <= 255 for row in new)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_quantise_to_a_codebook_gives_no_more_entries_than_it_has(pruned, bits):
    labels = quantise(pruned, Values("codebook", bits))
    for name, weight in prunable_weights(pruned).items():
        kept = weight[weight != 0]
        assert len(kept.unique()) <= 2**bits
        assert torch.equal(labels[name] >= 0, weight != 0)
        # one label, one value
        assert all(len(weight[labels[name] == label].unique()) == 1 for label in labels[name].unique())


def test_quantise_to_larger_codebooks_errs_less(tiny_net):
    errors = []
    for bits in range(2, 9):
        model = copy.deepcopy(tiny_net)
        quantise(model, Values("codebook", bits))
        errors.append((model.res2[0][0].weight - tiny_net.res2[0][0].weight).square().sum().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[2] / 8


def test_quantise_to_a_codebook_drops_weights_not_worth_their_bits(tiny_net):
    flat = tiny_net.res2[0][0].weight.data.view(-1)
    flat.zero_()
    flat[::10] = torch.randn(len(flat[::10])).abs() + 1
    flat[5::50] = 1e-3  # beside the others nothing, but dear: their positions and an entry that few have
    labels = quantise(tiny_net, Values("codebook", 4))
    assert (flat[5::50] == 0).all()
    assert (flat[::10] != 0).all()
    assert (labels["res2.0.0.weight"].view(-1)[5::50] == -1).all()


def test_quantise_to_a_codebook_drops_fewer_weights_with_more_bits(pruned):
    kept = []
    for bits in (4, 6, 8):
        model = copy.deepcopy(pruned)
        quantise(model, Values("codebook", bits))
        kept.append(sum(int(weight.count_nonzero()) for weight in prunable_weights(model).values()))
    assert kept[0] <= kept[1] <= kept[2] <= sum(int(w.count_nonzero()) for w in prunable_weights(pruned).values())


def test_quantise_of_an_empty_layer_leaves_it_empty(pruned):
    for text in KINDS[1:]:
        model = copy.deepcopy(pruned)
        model.conv2[0].weight.data.zero_()
        quantise(model, Values.parse(text))
        assert not model.conv2[0].weight.any()


@pytest.mark.parametrize(("text", "value"), [("fp16", 1e5), ("int8", float("inf")), ("codebook:4", float("nan"))])
def test_quantise_of_weights_beyond_the_format_is_refused_and_changes_nothing(pruned, text, value):
    pruned.conv2[0].weight.data[0, 0, 0, 0] = value
    before = weights_digest(pruned)
    with pytest.raises(InputError, match=r"conv2\.0\.weight"):
        quantise(pruned, Values.parse(text))
    assert weights_digest(pruned) == before


@pytest.mark.parametrize("text", KINDS)
def test_quantised_network_comes_back_from_its_file_bit_for_bit(pruned, tiny_header, text):
    quantise(pruned, Values.parse(text))
    assert weights_digest(unpack(pack(pruned, tiny_header)).model) == weights_digest(pruned)


def test_fewer_bits_make_smaller_files(tiny_header):
    from netprune.models import build_model

    sizes = []
    for text in KINDS:
        model = build_model(tiny_header.architecture)
        for weight in prunable_weights(model).values():
            weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        quantise(model, Values.parse(text))
        sizes.append(len(pack(model, tiny_header)))
    fp32, fp16, int8, two, four, eight = sizes
    assert fp32 > fp16 > int8 > four > two
    assert fp16 > eight


def spread_statistics(model):
    """Biases and statistics as a trained network has them."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + (0.5 if "var" in name else -0.5))


@pytest.mark.parametrize("text", KINDS[1:])
def test_quantise_folds_biases_and_keeps_eight_bits_of_the_rest(pruned, text):
    spread_statistics(pruned)
    quantise(pruned, Values.parse(text))
    assert not pruned.conv2[0].bias.any()
    for name, tensor in pruned.state_dict().items():
        if name not in prunable_weights(pruned) and tensor.is_floating_point():
            assert torch.equal(tensor, round_significand(tensor, 8)), name


@pytest.mark.parametrize("bits", [1, 8, 11, 24])
def test_round_significand_is_the_nearest_of_so_many_bits(bits):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    rounded = round_significand(values, bits)
    exponent = torch.floor(torch.log2(values.abs()))
    grain = 2.0 ** (exponent - bits + 1)
    assert ((rounded - values).abs() <= grain / 2).all()
    assert torch.equal(rounded / grain, torch.round(rounded / grain))


def test_round_significand_to_eleven_bits_equals_fp16_and_keeps_what_is_not_finite():
    values = torch.tensor([0.1, -3.7, 1234.5, 0.0, float("inf"), float("nan"), 1e-30, 3e38])
    rounded = round_significand(values, 11)
    assert torch.equal(rounded[:4], values[:4].half().float())
    assert rounded[4] == float("inf")
    assert rounded[5].isnan()
    torch.testing.assert_close(rounded[6:], values[6:], rtol=2**-11, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_round_significand_of_the_largest_numbers_stays_finite_and_near(dtype):
    largest = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min], dtype=dtype)
    rounded = round_significand(largest, 7)
    assert rounded.dtype == dtype
    assert (rounded.abs() < largest.abs()).all()
    torch.testing.assert_close(rounded.double(), largest.double(), rtol=2**-7, atol=0)
    torch.testing.assert_close(round_significand(rounded, 7), rounded, rtol=0, atol=0)


@pytest.mark.parametrize("text", KINDS[1:])
def test_quantise_of_a_weight_without_values_and_a_masks_lowest_number_leaves_both(text):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 5))
    model[2].weight = nn.Parameter(torch.zeros(5, 0))
    model.register_buffer("mask", torch.full((2,), torch.finfo(torch.float32).min))
    quantise(model, Values.parse(text))
    assert model[2].weight.shape == (5, 0)
    assert model.mask.isfinite().all()


def test_quantise_of_a_network_with_extra_state_is_refused():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"seen": 3}

    with pytest.raises(InputError, match="build it without extra state"):
        quantise(nn.Sequential(Extra(3, 3)), Values.parse("int8"))


def test_codebook_of_a_layer_is_the_same_whatever_the_scale_of_another(tiny_net):
    scaled = copy.deepcopy(tiny_net)
    with torch.no_grad():  # as batch normalisation would undo; wide layers have small weights
        prunable_weights(scaled)["conv3.0.weight"].mul_(2.0**-7)
    labels, others = (quantise(net, Values.parse("codebook:4")) for net in (tiny_net, scaled))
    assert all(torch.equal(labels[name], others[name]) for name in labels)


def test_codebook_without_a_rate_equals_k_means():
    values = np.sort(np.random.default_rng(0).normal(size=4000))
    book, edges = entropy_constrained_codebook(values, 8, 0.0)
    start = np.linspace(values[0], values[-1], 8)[:, None]
    reference = KMeans(8, init=start, n_init=1, max_iter=100, tol=0).fit(values[:, None])
    error = np.square(values - book[np.searchsorted(edges, values)]).sum()
    assert error == pytest.approx(reference.inertia_, rel=0.01)


def test_codebook_with_a_rate_beats_k_means_at_its_own_entropy():
    values = np.sort(np.random.default_rng(0).laplace(size=20_000))

    def measured(entries, weight):
        book, edges = entropy_constrained_codebook(values, entries, weight)
        index = np.searchsorted(edges, values)
        shares = np.bincount(index) / len(values)
        shares = shares[shares > 0]
        return np.square(values - book[index]).mean(), float(-(shares * np.log2(shares)).sum())

    plain_error, plain_bits = measured(8, 0.0)
    error, bits = measured(64, 0.12)
    assert bits < plain_bits
    assert error < plain_error


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0, 2.0], [-1.0, 1.0]])
def test_codebook_of_few_values_holds_them_all(values):
    book, edges = entropy_constrained_codebook(np.array(values), 16, 0.001)
    assert np.array_equal(book[np.searchsorted(edges, values)], values)


def test_share_gradients_gives_each_entry_its_mean_and_zeros_none(pruned):
    labels = quantise(pruned, Values("codebook", 2))
    weights = prunable_weights(pruned)
    for weight in weights.values():
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    before = {name: weight.grad.clone() for name, weight in weights.items()}
    share_gradients(pruned, labels)
    for name, weight in weights.items():
        for label in labels[name].unique():
            members = labels[name] == label
            expected = before[name][members].mean() if label >= 0 else torch.zeros(())
            torch.testing.assert_close(weight.grad[members], expected.expand(int(members.sum())))


def test_training_with_labels_moves_entries_and_parts_none(pruned, tiny_dataset):
    labels = quantise(pruned, Values("codebook", 2))
    before = {name: weight.detach().clone() for name, weight in prunable_weights(pruned).items()}
    train(pruned, tiny_dataset, TrainConfig(epochs=2, batch_size=8), held=Held(labels=labels))
    for name, weight in prunable_weights(pruned).items():  # shared gradients keep them together: no more than rounding
        assert not weight[labels[name] < 0].any()
        for label in labels[name].unique():
            torch.testing.assert_close(*weight[labels[name] == label].aminmax(), rtol=0, atol=1e-5)
    settle(pruned, labels)
    for name, weight in prunable_weights(pruned).items():
        assert not weight[labels[name] < 0].any()
        assert all(len(weight[labels[name] == label].unique()) == 1 for label in labels[name].unique())
    assert not all(torch.equal(weight, before[name]) for name, weight in prunable_weights(pruned).items())


def test_settle_of_what_is_settled_changes_nothing(pruned):
    labels = quantise(pruned, Values("codebook", 4))
    before = weights_digest(pruned)
    settle(pruned, labels)
    assert weights_digest(pruned) == before


def test_quantise_to_a_codebook_makes_no_zeros_in_layers_that_are_spared(tiny_net):
    spared = ("conv4.0.weight", "classifier.3.weight")
    plain = copy.deepcopy(tiny_net)
    dropped = {name: int((labels < 0).sum()) for name, labels in quantise(plain, Values("codebook", 2)).items()}
    assert all(dropped[name] for name in spared)
    labels = quantise(tiny_net, Values("codebook", 2), spared)
    assert {name: int((found < 0).sum()) for name, found in labels.items() if name not in spared} == {
        name: count for name, count in dropped.items() if name not in spared
    }
    for name in spared:
        weight = prunable_weights(tiny_net)[name]
        assert weight.count_nonzero() == weight.numel()
        assert len(weight.unique()) <= 4
