"""The scan: it measures what it says, and leaves the network as it found it."""

import copy
import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import scipy.stats
import torch

from netprune.errors import InputError
from netprune.evaluation import Evaluation, evaluate, image_losses
from netprune.masks import apply_masks, make_masks
from netprune.models import prunable_weights, weights_digest
from netprune.sensitivity import Sensitivity, scan, sparsity_grid
from netprune.training import TrainConfig, train

GRID = (0.0, 0.5, 0.9)


@pytest.fixture(scope="module")
def trained(tiny_dataset):
    """A trained network of width 2, for reading only."""
    from netprune.models import Architecture, build_model

    model = build_model(Architecture(name="net10", num_classes=3, width=2))
    train(model, tiny_dataset, TrainConfig(epochs=4, batch_size=8))
    return model


@pytest.fixture(scope="module")
def scanned(trained, tiny_dataset):
    """Its scan over `GRID`."""
    return scan(trained, tiny_dataset, GRID)


def assert_same(one, other):
    for field in fields(Sensitivity):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            assert np.array_equal(a, b, equal_nan=True), field.name
        else:
            assert a == b, field.name
            assert type(a) is type(b), field.name


def test_scan_equals_pruning_a_copy_and_evaluating_it(trained, tiny_dataset, scanned):
    for i, layer in enumerate(prunable_weights(trained)):
        for j, sparsity in enumerate(GRID):
            model = copy.deepcopy(trained)
            apply_masks(model, make_masks(model, {layer: sparsity}))
            direct = evaluate(model, tiny_dataset.val, tiny_dataset)
            assert scanned.loss[i, j] == direct.loss
            assert scanned.accuracy[i, j] == direct.accuracy
            assert scanned.accuracy_se[i, j] == direct.accuracy_se


def test_scan_error_is_paired_with_the_dense_network(trained, tiny_dataset, scanned):
    model = copy.deepcopy(trained)
    apply_masks(model, make_masks(model, {"conv3.0.weight": 0.9}))
    losses, dense = (image_losses(m, tiny_dataset.val, tiny_dataset)[0].numpy() for m in (model, trained))
    assert scanned.loss_se[4, 2] == pytest.approx(scipy.stats.sem((losses - dense).astype(float)), rel=1e-5)


def test_scan_at_sparsity_zero_has_no_damage(trained, tiny_dataset, scanned):
    assert (scanned.damage[:, 0] == 0).all()
    assert (scanned.loss_se[:, 0] == 0).all()
    assert (scanned.accuracy[:, 0] == scanned.baseline.accuracy).all()
    assert scanned.baseline == evaluate(trained, tiny_dataset.val, tiny_dataset)
    assert scanned.damage[:, 2].any()


def test_scan_says_what_was_scanned(trained, tiny_dataset, scanned):
    weights = prunable_weights(trained)
    assert scanned.layers == tuple(weights)
    assert scanned.sizes == tuple(weight.numel() for weight in weights.values())
    assert scanned.sparsities == GRID
    assert scanned.loss.shape == scanned.loss_se.shape == scanned.accuracy.shape == scanned.accuracy_se.shape == (10, 3)
    assert (scanned.split, scanned.val_digest, scanned.digest) == (
        "val",
        tiny_dataset.val_digest(),
        weights_digest(trained),
    )


def test_scan_reads_the_validation_split_only(trained, tiny_dataset):
    result = scan(trained, replace(tiny_dataset, train=None, test=None), (0.5,))
    assert result.baseline.count == 24


def test_scan_counts_its_points_to_the_end(trained, tiny_dataset):
    points = []
    scan(trained, tiny_dataset, (0.3, 0.6), on_point=lambda *point: points.append(point))
    assert points == [(done, 20) for done in range(1, 21)]


@pytest.mark.parametrize("stop_at", [None, 1, 7])
def test_scan_leaves_the_network_as_it_was_also_when_it_is_stopped(trained, tiny_dataset, stop_at):
    model = copy.deepcopy(trained)
    model.train()
    model.res1[0].eval()
    with torch.no_grad():
        model.conv1[0].weight.view(-1)[0] = -0.0
    digest, modes, state = weights_digest(model), [m.training for m in model.modules()], torch.get_rng_state()

    def on_point(done, _):
        if done == stop_at:
            raise KeyboardInterrupt

    if stop_at is None:
        scan(model, tiny_dataset, (0.5,), on_point=on_point)
    else:
        with pytest.raises(KeyboardInterrupt):
            scan(model, tiny_dataset, (0.5,), on_point=on_point)
    assert weights_digest(model) == digest
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_scan_stopped_inside_an_evaluation_puts_the_weight_back(trained, tiny_dataset):
    model, calls = copy.deepcopy(trained), []

    def fail(*_):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("out of memory")

    handle = model.conv4.register_forward_hook(fail)
    digest, modes = weights_digest(model), [m.training for m in model.modules()]
    with pytest.raises(RuntimeError, match="out of memory"):
        scan(model, tiny_dataset, (0.5, 0.9))
    handle.remove()
    assert weights_digest(model) == digest
    assert [m.training for m in model.modules()] == modes


def test_sensitivity_through_json_is_exactly_the_same(scanned):
    assert_same(Sensitivity.from_json(scanned.to_json()), scanned)


def test_sensitivity_through_json_keeps_awkward_numbers():
    awkward = Sensitivity(
        layers=("a",),
        sizes=(3,),
        sparsities=(0.1 + 0.2, 0.7),
        loss=np.array([[1 / 3, 5e-324]]),
        loss_se=np.array([[math.inf, math.nan]]),
        accuracy=np.array([[0.1 + 0.7, 1.0]]),
        accuracy_se=np.array([[-0.0, 1e300]]),
        baseline=Evaluation(loss=0.1 + 0.2, loss_se=1 / 7, accuracy=2 / 3, accuracy_se=0.0, count=3),
        split="val",
        val_digest="ab",
        digest="cd",
    )
    again = Sensitivity.from_json(awkward.to_json())
    assert_same(again, awkward)
    assert np.signbit(again.accuracy_se[0, 0])


def test_sensitivity_json_is_plain(scanned):
    parsed = json.loads(scanned.to_json())
    assert parsed["layers"][0] == "conv1.0.weight"
    assert np.array(parsed["loss"]).shape == (10, 3)


@pytest.mark.parametrize(
    ("low", "high", "step", "expected"),
    [
        (0.4, 0.9, 0.1, (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
        (0.0, 0.7, 0.1, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)),
        (0.1, 0.35, 0.1, (0.1, 0.2, 0.3)),
        (0.5, 0.5, 0.1, (0.5,)),
        (0.05, 0.95, 0.3, (0.05, 0.35, 0.65, 0.95)),
        (0.2, 0.3, 0.5, (0.2,)),
    ],
)
def test_sparsity_grid_includes_both_ends_where_the_steps_meet(low, high, step, expected):
    assert sparsity_grid(low, high, step) == expected


@pytest.mark.parametrize("step", [0.1, 0.05, 0.01, 0.03, 0.007])
def test_sparsity_grid_equals_decimal_arithmetic(step):
    from decimal import Decimal

    exact, at = [], Decimal("0.1")
    while at <= Decimal("0.94"):
        exact.append(float(at))
        at += Decimal(str(step))
    assert sparsity_grid(0.1, 0.94, step) == tuple(exact)


@pytest.mark.parametrize(
    ("low", "high", "step", "word"),
    [
        (-0.1, 0.5, 0.1, "range"),
        (0.5, 1.0, 0.1, "range"),
        (0.6, 0.5, 0.1, "range"),
        (math.nan, 0.5, 0.1, "range"),
        (0.1, math.nan, 0.1, "range"),
        (0.1, 0.5, 0.0, "step"),
        (0.1, 0.5, -0.1, "step"),
        (0.1, 0.5, math.nan, "step"),
    ],
)
def test_sparsity_grid_bad_value_is_refused(low, high, step, word):
    with pytest.raises(InputError, match=word):
        sparsity_grid(low, high, step)
