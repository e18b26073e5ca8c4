"""A budget in bytes: met from below, or refused."""

import math

import pytest

from netprune.allocation import Basis, find_allocator
from netprune.budget import BISECTIONS, LEAST_DENSITY, TOLERANCE, fit_bytes, packed_bytes
from netprune.errors import InputError
from netprune.header import PackedHeader
from netprune.masks import apply_masks, make_masks
from netprune.models import Architecture, build_model
from netprune.packing import pack
from netprune.weights import prunable_weights, weights_digest

SIZE = 10_000_000


def allocate(density):
    return {"a": 1 - density}


def smooth(sparsity):
    """100 bytes of header and one a weight."""
    return 100 + round(SIZE * (1 - sparsity["a"]))


def entropy(sparsity):
    """A position takes bits too: rising in the density, and curved."""
    density = 1 - sparsity["a"]
    bits = -sum(p * math.log2(p) for p in (density, 1 - density) if p > 0) if density < 0.97 else 0.19
    return 5000 + round(SIZE / 8 * (32 * density + bits))


def steps(sparsity):
    """Files grow by whole megabytes."""
    return 1_000_000 * (1 + math.floor(10 * (1 - sparsity["a"])))


def counted(measure):
    """The function, and the list of what it returned."""
    seen = []

    def wrapper(sparsity):
        seen.append(measure(sparsity))
        return seen[-1]

    return wrapper, seen


@pytest.mark.parametrize("measure", [smooth, entropy])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.123, 0.03, 0.004])
def test_fit_bytes_ends_at_most_a_thousandth_below_the_budget(measure, share):
    budget = int(measure(allocate(1.0)) * share)
    wrapper, seen = counted(measure)
    sparsity, size = fit_bytes(allocate, wrapper, budget)
    assert size == measure(sparsity)
    assert budget * (1 - TOLERANCE) <= size <= budget
    assert 0 < sparsity["a"] < 1
    assert len(seen) <= BISECTIONS + 1


@pytest.mark.parametrize("budget", [1_000_000, 1_500_000, 3_000_000, 7_999_999, 10_999_999])
def test_fit_bytes_of_a_file_that_grows_in_steps_ends_on_the_largest_below(budget):
    sparsity, size = fit_bytes(allocate, steps, budget)
    assert size == steps(sparsity) == budget // 1_000_000 * 1_000_000


@pytest.mark.parametrize("budget", [smooth({"a": 0.0}), smooth({"a": 0.0}) + 1, 10**12])
def test_fit_bytes_of_a_budget_for_the_dense_network_gives_the_dense_network(budget):
    wrapper, seen = counted(smooth)
    assert fit_bytes(allocate, wrapper, budget) == ({"a": 0.0}, SIZE + 100)
    assert len(seen) == 1


@pytest.mark.parametrize("budget", [0, 100, 100 + int(SIZE * LEAST_DENSITY) - 1])
def test_fit_bytes_of_an_impossible_budget_is_refused_with_the_least(budget):
    with pytest.raises(InputError, match=rf"no allocation fits into {budget:,} bytes: the sparsest takes 1,\d\d\d\."):
        fit_bytes(allocate, smooth, budget)


def reaching(least):
    def rule(density):
        if density < least:
            raise InputError("scan to higher sparsities")
        return allocate(density)

    return rule


@pytest.mark.parametrize("least", [0.002, 0.1, 0.25])
def test_fit_bytes_of_a_rule_with_an_end_stays_above_it(least):
    budget = 100 + int(SIZE * 0.3)
    sparsity, size = fit_bytes(reaching(least), smooth, budget)
    assert budget * (1 - TOLERANCE) <= size <= budget
    assert 1 - sparsity["a"] >= least


def test_fit_bytes_below_the_end_of_a_rule_is_refused_with_its_least():
    with pytest.raises(InputError, match=r"2,000,000 bytes: the sparsest takes 2,500,1\d\d"):
        fit_bytes(reaching(0.25), smooth, 2_000_000)


@pytest.mark.parametrize("share", [0.9, 0.3, 0.01])
def test_fit_bytes_of_a_network_that_is_pruned_already_goes_on_from_there(share):
    def rule(density):  # as the rules by damage do
        if density > 0.4:
            raise InputError("the scanned network has only 0.4 of its weights left")
        return allocate(density)

    budget = int(smooth(allocate(0.4)) * share)
    sparsity, size = fit_bytes(rule, smooth, budget)
    assert budget * (1 - TOLERANCE) <= size <= budget
    assert sparsity["a"] >= 0.6


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95, 1.0])
def test_packed_bytes_is_the_length_of_the_pruned_copys_file(tiny_net, tiny_header, sparsity):
    tiny_net.train()
    digest, modes = weights_digest(tiny_net), [m.training for m in tiny_net.modules()]
    allocation = dict.fromkeys(prunable_weights(tiny_net), sparsity)
    found = packed_bytes(tiny_net, tiny_header, allocation)
    assert weights_digest(tiny_net) == digest
    assert [module.training for module in tiny_net.modules()] == modes
    apply_masks(tiny_net, make_masks(tiny_net, allocation))
    assert found == len(pack(tiny_net, tiny_header))


def test_packed_bytes_of_an_unknown_layer_is_refused(tiny_net, tiny_header):
    with pytest.raises(InputError, match="conv9"):
        packed_bytes(tiny_net, tiny_header, {"conv9.0.weight": 0.5})


@pytest.mark.parametrize(("rule", "share"), [("global_magnitude", 0.2), ("erk", 0.05)])
def test_fit_bytes_of_a_real_file_meets_the_budget(tiny_header, rule, share):
    architecture = Architecture(name="net10", num_classes=3, width=16)
    model = build_model(architecture, seed=0)
    header = PackedHeader(
        architecture=architecture,
        classes=tiny_header.classes,
        mean=tiny_header.mean,
        std=tiny_header.std,
        dense_digest=weights_digest(model),
    )
    budget = int(share * len(pack(model, header)))
    basis = Basis(model=model)
    sparsity, size = fit_bytes(
        lambda d: find_allocator(rule)(basis, d), lambda s: packed_bytes(model, header, s), budget
    )
    assert budget * (1 - TOLERANCE) <= size <= budget
    assert sparsity.keys() == prunable_weights(model).keys()
    apply_masks(model, make_masks(model, sparsity))
    assert len(pack(model, header)) == size
