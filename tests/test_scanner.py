"""The scan: it measures what it says, stops where it may, goes on where it was, and leaves the network as it was."""

import copy
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import nn

from netprune import grid, scanner
from netprune.compute import Compute
from netprune.data import Dataset, Split
from netprune.errors import InputError
from netprune.evaluation import evaluate, image_losses
from netprune.gradients import loss_gradients
from netprune.loader import normalise
from netprune.masks import apply_masks, make_masks, pruned_count
from netprune.saliency import SALIENCIES
from netprune.scan_record import ScanRecord
from netprune.scanner import DENSE, ScanConfig, scan
from netprune.sensitivity import LayerCurve, Sensitivity
from netprune.weights import prunable_weights, weights_digest

SPARSITIES = (0.4, 0.9, 1.0)
EXACT = ScanConfig(sparsities=SPARSITIES, max_se=0, precision="fp32")
LAYERS = ("conv1.weight", "conv2.weight", "fc.weight")


class Small(nn.Module):
    """Two convolutions, the second around a shortcut, and a linear layer: 216, 576 and 24 weights."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.drop, self.fc = nn.Dropout(0.3), nn.Linear(8, 3)

    def features(self, images):
        x = F.relu(self.conv1(images))
        return (x + F.relu(self.conv2(x))).mean((2, 3))

    def forward(self, images):
        return self.fc(self.drop(self.features(images)))


class Cosine(Small):
    """Divides by the length of its features: with the first convolution emptied there is none, and no loss."""

    def __init__(self):
        super().__init__()
        self.conv1.bias = self.conv2.bias = None

    def features(self, images):
        x = super().features(images)
        return x / x.norm(dim=1, keepdim=True)


class Narrow(nn.Module):
    """108 and 12 weights: the grid has fewer steps there."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, images):
        return self.fc(F.relu(self.conv(images)).mean((2, 3)))


class CentresItsInput(Small):
    """Changes the images that it is given."""

    def forward(self, images):
        images -= 0.5
        return super().forward(images)


class AddsInPlace(Small):
    def features(self, images):
        x = F.relu(self.conv1(images))
        x.add_(F.relu(self.conv2(x)))
        return x.mean((2, 3))


class TakesMore(Small):
    def forward(self, images, *_others, **_options):
        return super().forward(images)


class WithDeadLayers(Small):
    """One layer's output counts for nothing, another is never used."""

    def __init__(self):
        super().__init__()
        self.silent, self.unused = nn.Linear(8, 3), nn.Conv2d(3, 4, 3)

    def forward(self, images):
        x = self.features(images)
        return self.fc(x) + 0 * self.silent(x)


class Untraceable(nn.Module):
    """Any network, with a look at the images that no tracer follows."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        if images.abs().max() > 1e9:
            raise ValueError("these are no images")
        return self.net(images)


class Noisy(Small):
    def forward(self, images):
        return self.fc(F.dropout(self.features(images), 0.5, training=True))


class Colours(nn.Module):
    """Names the brightest of three colours, by hand; `offset` is added to every logit."""

    def __init__(self, offset):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 1), nn.Linear(3, 3)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None])
            self.fc.weight.copy_(torch.eye(3))
            self.conv.bias.zero_()
            self.fc.bias.fill_(offset)

    def forward(self, images):
        return self.fc(self.conv(images).mean((2, 3)))


def coloured(count, seed):
    """Noise of 6×6 pixels, one colour a little brighter: three classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 200, (count, 3, 6, 6), generator=generator)
    return Split((noise + 50 * torch.eye(3, dtype=torch.int64)[labels][:, :, None, None]).to(torch.uint8), labels)


def dataset_of(val, train=150):
    return Dataset(
        name="coloured",
        train=coloured(train, 1),
        val=coloured(val, 2),
        test=coloured(10, 3),
        classes=("red", "green", "blue"),
        mean=(0.45, 0.45, 0.45),
        std=(0.25, 0.25, 0.25),
    )


DATA, MORE_DATA = dataset_of(200), dataset_of(700)


def train_a_little(model):
    """Thirty steps on the training split, so that pruning does some harm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(model(normalise(DATA.train.images, DATA)), DATA.train.labels).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model


@pytest.fixture(scope="module")
def trained():
    """A trained network, for reading only."""
    return train_a_little(Small())


@pytest.fixture
def small_rounds(monkeypatch):
    """Rounds of 40 images: 200 images are five."""
    monkeypatch.setattr(scanner, "EVAL_BATCH", 20)
    monkeypatch.setattr(scanner, "ROUND_IMAGES", 40)


def pruned(model, allocation, **how):
    model = copy.deepcopy(model)
    apply_masks(model, make_masks(model, allocation, **how))
    return model


def points(sensitivity):
    return sum(len(curve.sparsities) for curve in sensitivity.curves)


class Follower:
    """What `on_point` was told; it may raise at one of the calls."""

    def __init__(self, stop_at=None, error=KeyboardInterrupt):
        self.calls, self.stop_at, self.error = [], stop_at, error

    def __call__(self, done, known):
        self.calls.append((done, known))
        if len(self.calls) == self.stop_at:
            raise self.error


def assert_equals_pruning_a_copy(model, result):
    for curve in result.curves:
        expected = [evaluate(pruned(model, {curve.layer: s}), DATA.val, DATA).loss for s in curve.sparsities.tolist()]
        assert curve.loss.tolist() == expected, curve.layer


# the numbers


@pytest.mark.parametrize("wrap", [lambda net: net, Untraceable], ids=["traced", "whole passes"])
def test_scan_in_exact_mode_equals_pruning_a_copy_and_evaluating_it(trained, wrap):
    model = wrap(trained)
    result = scan(model, MORE_DATA, EXACT)
    dense, _ = image_losses(model, MORE_DATA.val, MORE_DATA)
    assert result.layers == tuple(prunable_weights(model))
    for curve in result.curves:
        assert curve.sparsities.tolist() == list(SPARSITIES)
        assert curve.count.tolist() == [700] * 3
        for i, sparsity in enumerate(SPARSITIES):
            copied = pruned(model, {curve.layer: sparsity})
            direct, (losses, _) = (
                evaluate(copied, MORE_DATA.val, MORE_DATA),
                image_losses(copied, MORE_DATA.val, MORE_DATA),
            )
            assert (curve.loss[i], curve.accuracy[i], curve.accuracy_se[i]) == (
                direct.loss,
                direct.accuracy,
                direct.accuracy_se,
            )
            differences = (losses - dense).double().numpy()
            assert curve.damage[i] == pytest.approx(differences.mean(), rel=1e-9)
            assert curve.damage_se[i] == pytest.approx(scipy.stats.sem(differences), rel=1e-9)
            assert curve.changed[i] == differences.any()
    assert result.baseline == evaluate(model, MORE_DATA.val, MORE_DATA)
    assert max(curve.damage.max() for curve in result.curves) > 0.1


def test_scan_of_net10_in_exact_mode_equals_pruning_a_copy(tiny_net, tiny_dataset):
    result = scan(tiny_net, tiny_dataset, replace(EXACT, sparsities=(0.5, 1.0)))
    assert result.whole_passes == ""
    for curve in result.curves:
        for i, sparsity in enumerate((0.5, 1.0)):
            direct = evaluate(pruned(tiny_net, {curve.layer: sparsity}), tiny_dataset.val, tiny_dataset)
            assert (curve.loss[i], curve.accuracy[i]) == (direct.loss, direct.accuracy)


def test_scan_of_what_cannot_be_traced_says_why_and_has_the_same_numbers(trained):
    plain, whole = scan(trained, DATA, EXACT), scan(Untraceable(trained), DATA, EXACT)
    assert plain.whole_passes == ""
    assert "cannot be traced" in whole.whole_passes
    assert whole.layers == tuple(f"net.{layer}" for layer in plain.layers)
    for one, other in zip(plain.curves, whole.curves, strict=True):
        assert np.array_equal(one.loss, other.loss)
        assert np.array_equal(one.damage_se, other.damage_se)


def test_scan_says_what_was_scanned(trained):
    result = scan(trained, DATA, EXACT)
    assert (result.split, result.val_digest, result.digest) == ("val", DATA.val_digest(), weights_digest(trained))
    assert (result.max_se, result.missed, result.compute) == (0, 0, "fp32, contiguous, batches of 500")
    assert result.sizes == {"conv1.weight": 216, "conv2.weight": 576, "fc.weight": 24}
    assert [curve.start for curve in result.curves] == [0.0] * 3
    assert Sensitivity.from_json(result.to_json()).to_json() == result.to_json()


@pytest.mark.parametrize("name", ["lamp", "taylor", "random"])
def test_scan_by_another_saliency_prunes_by_it(trained, name):
    result = scan(trained, DATA, EXACT, saliency=SALIENCIES[name])
    gradients = loss_gradients(trained, DATA)
    for curve in result.curves:
        copied = pruned(trained, {curve.layer: 0.4}, saliency=SALIENCIES[name], gradients=gradients)
        assert curve.loss[0] == evaluate(copied, DATA.val, DATA).loss
    by_magnitude = scan(trained, DATA, EXACT)
    same = all(np.array_equal(a.loss, b.loss) for a, b in zip(result.curves, by_magnitude.curves, strict=True))
    assert same == (name == "lamp")


@pytest.mark.parametrize("way", [Compute(channels_last=True, batch_size=7), Compute(batch_size=64)])
def test_scan_in_any_fp32_way_has_the_same_numbers_but_for_rounding(trained, monkeypatch, way):
    monkeypatch.setattr(scanner, "choose_compute", lambda *_, **__: way)
    expected, found = scan(trained, DATA, EXACT), scan(trained, DATA, replace(EXACT, precision="auto"))
    assert found.compute == str(way)
    for one, other in zip(expected.curves, found.curves, strict=True):
        assert one.count.tolist() == other.count.tolist()
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.damage == pytest.approx(one.damage, abs=1e-5)


def test_scan_reads_the_validation_split_only(trained):
    result = scan(trained, replace(DATA, train=None, test=None), EXACT)
    assert result.baseline.count == 200


def test_scan_tells_a_dead_layer_from_a_robust_one():
    model = train_a_little(WithDeadLayers())
    for config in (EXACT, ScanConfig(precision="fp32")):
        result = scan(model, DATA, config)
        assert result.whole_passes == ""
        assert {c.layer: c.has_effect for c in result.curves} == {
            **dict.fromkeys(LAYERS, True),
            "silent.weight": False,
            "unused.weight": False,
        }
        assert not result["unused.weight"].damage.any()


def test_scan_of_a_network_that_changes_its_input_shows_it_fresh_images():
    # `evaluate` makes each batch anew; a scan shows the same one to every point
    model = train_a_little(CentresItsInput())
    assert_equals_pruning_a_copy(model, scan(model, DATA, EXACT))


def test_scan_of_a_network_that_adds_in_place_equals_pruning_a_copy(trained):
    model = AddsInPlace()
    model.load_state_dict(trained.state_dict())
    assert_equals_pruning_a_copy(model, scan(model, DATA, EXACT))


def test_scan_of_a_network_with_variable_arguments_equals_pruning_a_copy():
    model = train_a_little(TakesMore())
    assert_equals_pruning_a_copy(model, scan(model, DATA, EXACT))


# how many images


def test_scan_stops_each_point_as_soon_as_its_error_is_small_enough(trained, small_rounds):
    max_se = 0.03
    result = scan(trained, DATA, ScanConfig(sparsities=SPARSITIES, max_se=max_se, precision="fp32"))
    dense, _ = image_losses(trained, DATA.val, DATA)
    counts = []
    for curve in result.curves:
        for i, sparsity in enumerate(SPARSITIES):
            losses, _ = image_losses(pruned(trained, {curve.layer: sparsity}), DATA.val, DATA)
            differences = (losses - dense).double().numpy()

            def sharp(count, differences=differences):
                seen = differences[:count]
                return scipy.stats.sem(seen) <= max(max_se, 0.05 * seen.mean())

            expected = next((count for count in (40, 80, 120, 160) if sharp(count)), 200)
            assert curve.count[i] == expected
            assert curve.damage[i] == pytest.approx(differences[:expected].mean(), abs=1e-6)
            assert curve.damage_se[i] == pytest.approx(scipy.stats.sem(differences[:expected]), rel=1e-3)
            counts.append(expected)
    assert min(counts) < 200
    assert len(set(counts)) > 2
    assert result.baseline.count == max(counts)


@pytest.mark.parametrize("max_se", [1e-9, 0.03, 10.0])
def test_scan_counts_the_points_that_never_get_sharp(trained, small_rounds, max_se):
    result = scan(trained, DATA, ScanConfig(sparsities=SPARSITIES, max_se=max_se, precision="fp32"))
    blunt = [c.damage_se > np.maximum(max_se, 0.05 * c.damage) for c in result.curves]
    assert result.missed == sum(int(b.sum()) for b in blunt)
    assert all((curve.count[b] == 200).all() for curve, b in zip(result.curves, blunt, strict=True))
    if max_se == 1e-9:
        assert result.missed > 0
    if max_se == 10.0:
        assert result.missed == 0
        assert all((curve.count == 40).all() for curve in result.curves)


def test_scan_of_a_point_without_a_finite_loss_stops_there_and_is_not_missed(small_rounds):
    found = scan(train_a_little(Cosine()), DATA, ScanConfig(sparsities=SPARSITIES, max_se=0.3, precision="fp32"))
    curve = found["conv1.weight"]
    assert np.isfinite(curve.damage).tolist() == [True, True, False]
    assert curve.count[-1] == 40
    assert found.missed == 0
    assert curve.while_finite().sparsities.tolist() == [0.4, 0.9]
    assert found["conv2.weight"].while_finite() is found["conv2.weight"]


def test_scan_of_fewer_images_than_a_round_takes_them_all(trained):
    data = replace(DATA, val=coloured(9, 5))
    result = scan(trained, data, ScanConfig(precision="fp32"))
    assert all((curve.count == 9).all() for curve in result.curves)


# the grid


def test_grid_is_log_spaced_in_density_down_to_a_thousandth_and_ends_with_nothing_left():
    weight = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    expected = [1 - 10**-0.5, 0.9, 1 - 10**-1.5, 0.99, 1 - 10**-2.5, 0.999, 1.0]
    assert grid.density_grid(weight) == pytest.approx(expected, abs=1e-12)
    weight[:6000] = 0
    assert grid.density_grid(weight) == pytest.approx([1 - 0.4 * (1 - s) for s in expected], abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 12, 24, 54, 1000])
@pytest.mark.parametrize("zeros", [0, 0.5, 1])
def test_grid_of_a_small_layer_has_no_two_points_that_prune_the_same_number(size, zeros):
    weight = torch.ones(size)
    already = round(zeros * size)
    weight[:already] = 0
    found = grid.density_grid(weight)
    counts = [pruned_count(size, sparsity) for sparsity in found]
    assert found[-1] == 1.0
    assert all(a < b for a, b in itertools.pairwise(counts))
    assert counts[0] > already or found == [1.0]
    # what would prune nothing more than is gone is no point
    assert grid.distinct([0.0, already / size, *found], weight) == found


def test_scan_on_its_own_grid_reaches_a_thousandth_in_every_layer(trained):
    result = scan(trained, DATA, ScanConfig(precision="fp32"))
    for curve in result.curves:
        assert curve.sparsities[-1] == 1.0
        assert (np.diff(curve.sparsities) > 0).all()
        counts = [pruned_count(curve.size, s) for s in curve.sparsities.tolist()]
        assert len(set(counts)) == len(counts)
        assert curve.sparsities[-2] >= min(0.999, 1 - 1.5 / curve.size)


def synthetic(x, damage, se=0.001, now=1.0, whole=False):
    """A curve whose points lie at these decades of density below `now`; with `whole`, the last one is at 1."""
    sparsities = 1 - now * 10.0 ** -np.asarray(x, dtype=float)
    if whole:
        sparsities[-1] = 1.0
    count = len(sparsities)
    return LayerCurve(
        layer="a",
        size=10**6,
        start=1 - now,
        sparsities=sparsities,
        loss=np.zeros(count),
        damage=np.asarray(damage, dtype=float),
        damage_se=np.full(count, se),
        accuracy=np.zeros(count),
        accuracy_se=np.zeros(count),
        count=np.full(count, 100),
        changed=np.ones(count, dtype=bool),
    )


HALVES = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)


def decades(sparsities, now=1.0):
    return [-math.log10((1 - s) / now) for s in sparsities]


@pytest.mark.parametrize("now", [1.0, 0.2])
@pytest.mark.parametrize("at", HALVES[:-1])
def test_midpoints_lie_on_both_sides_of_the_bend(at, now):
    curve = synthetic(HALVES, [max(0.0, 2 * (x - at)) for x in HALVES], now=now)
    assert decades(grid.midpoints(curve, now, 1000), now) == pytest.approx([at - 0.25, at + 0.25])


@pytest.mark.parametrize(
    "curve",
    [
        synthetic(HALVES, [0.3 * x for x in HALVES]),
        synthetic(HALVES, [0.0] * 6),
        synthetic(HALVES, [max(0.0, 0.25 * (x - 1)) for x in HALVES]),
        synthetic(HALVES, [max(0.0, 2 * (x - 1)) for x in HALVES], se=0.4),
        synthetic([0.15, 0.3, 0.45], [0.0, 0.3, 0.9]),
        synthetic([0.1], [3.0]),
    ],
    ids=["straight", "flat", "slight", "within the noise", "close already", "one point"],
)
def test_midpoints_of_a_curve_that_needs_none_are_none(curve):
    assert grid.midpoints(curve, 1.0, 1000) == []


def test_midpoints_beyond_the_loss_of_guessing_are_not_wanted():
    damage = [3.0 * x for x in (0.5, 1.0, 1.5)] + [4.5, 4.5, 4.5]
    curve = synthetic(HALVES, damage)
    assert decades(grid.midpoints(curve, 1.0, 1000)) == pytest.approx([1.25, 1.75])
    assert grid.midpoints(curve, 1.0, 10) == []


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_midpoints_of_a_damage_that_is_not_finite_lie_before_it(broken):
    rising = [max(0.0, 2 * (x - 1)) for x in HALVES]
    curve = synthetic(HALVES, [*rising[:4], broken, 9.0])
    assert decades(grid.midpoints(curve, 1.0, 1000)) == pytest.approx([0.75, 1.25])
    assert grid.midpoints(synthetic(HALVES, [broken] * 6), 1.0, 1000) == []


def test_midpoints_towards_nothing_left_are_not_wanted():
    x = (*HALVES, 3.5)
    bent = synthetic(x, [max(0.0, 2 * (v - 3)) for v in x], whole=True)
    assert decades(grid.midpoints(bent, 1.0, 1000)) == pytest.approx([2.75])
    straight = synthetic(x, [0.3 * v for v in x], whole=True)
    assert grid.midpoints(straight, 1.0, 1000) == []


def test_scan_on_its_own_grid_adds_what_the_bends_ask_for_and_nothing_else(trained, monkeypatch):
    extra = {"conv1.weight": [0.5, 0.8], "conv2.weight": [], "fc.weight": [0.31]}
    monkeypatch.setattr(scanner, "midpoints", lambda curve, *_: extra[curve.layer])
    result = scan(trained, DATA, ScanConfig(precision="fp32"))
    for curve in result.curves:
        weight = prunable_weights(trained)[curve.layer]
        assert curve.sparsities.tolist() == sorted([*grid.density_grid(weight), *extra[curve.layer]])
        for i, sparsity in enumerate(curve.sparsities.tolist()):
            assert curve.loss[i] == evaluate(pruned(trained, {curve.layer: sparsity}), DATA.val, DATA).loss


def test_scan_of_given_sparsities_adds_none(trained, monkeypatch):
    def fail(*_):
        raise AssertionError("nothing was to be refined")

    monkeypatch.setattr(scanner, "midpoints", fail)
    result = scan(trained, DATA, ScanConfig(sparsities=SPARSITIES, precision="fp32"))
    assert all(curve.sparsities.tolist() == list(SPARSITIES) for curve in result.curves)


def test_refining_a_layer_of_any_size_keeps_the_points_that_are_measured():
    dropped = {}
    for size in range(1, 101):
        weight = torch.ones(size)
        known = grid.density_grid(weight)
        for _ in range(scanner.REFINEMENTS):
            zigzag = [100.0 * (i % 2) for i in range(len(known))]  # it bends at every point
            curve = replace(synthetic([1.0] * len(known), zigzag), sparsities=np.array(known))
            refined = grid.distinct([*known, *grid.midpoints(curve, 1.0, 10**90)], weight)
            dropped[size] = dropped.get(size, set()) | (set(known) - set(refined))
            known = refined
    assert not {size: gone for size, gone in dropped.items() if gone}


def test_scan_of_small_layers_measures_what_it_reports_and_no_more():
    model, follower, record = train_a_little(Narrow()), Follower(), ScanRecord()
    result = scan(model, DATA, ScanConfig(max_se=0, precision="fp32"), record=record, on_point=follower)
    assert record.losses.keys() == {DENSE, *((c.layer, s) for c in result.curves for s in c.sparsities.tolist())}
    assert len(follower.calls) == points(result) + 1
    assert follower.calls[-1] == (points(result), points(result))


def test_scan_of_a_pruned_network_starts_from_where_it_is(trained):
    model = pruned(trained, {"conv2.weight": 0.8, "fc.weight": 0.5})
    result = scan(model, DATA, ScanConfig(max_se=0, precision="fp32"))
    assert result["conv1.weight"].start == 0.0
    assert result["conv2.weight"].start == pytest.approx(round(0.8 * 576) / 576)
    assert result["fc.weight"].start == 0.5
    assert result.baseline == evaluate(model, DATA.val, DATA)
    for curve in result.curves:
        assert (curve.sparsities > curve.start).all()
        assert curve.changed.all()
        for i, sparsity in enumerate(curve.sparsities.tolist()):
            direct = evaluate(pruned(model, {curve.layer: sparsity}), DATA.val, DATA)
            assert curve.loss[i] == direct.loss
            assert curve.damage[i] == pytest.approx(direct.loss - result.baseline.loss, abs=1e-6)


@pytest.mark.parametrize("name", ["taylor", "random"])
def test_scan_of_a_pruned_network_by_another_saliency_prunes_as_much_as_asked(trained, monkeypatch, name):
    started = pruned(trained, dict.fromkeys(LAYERS, 0.5))
    prune, left = scanner._Scanner._prune, []

    def spy(self, layer, sparsity):
        prune(self, layer, sparsity)
        weight = self.weights[layer]
        left.append((int((weight == 0).sum()), pruned_count(weight.numel(), max(sparsity, 0.5))))

    monkeypatch.setattr(scanner._Scanner, "_prune", spy)
    scan(started, DATA, EXACT, saliency=SALIENCIES[name])
    assert len(left) == len(LAYERS) * len(SPARSITIES)
    assert all(found == asked for found, asked in left)


def test_scan_of_a_network_with_an_empty_layer_has_nothing_to_prune_there(trained):
    model = pruned(trained, {"conv2.weight": 1.0})
    result = scan(model, DATA, ScanConfig(max_se=0, precision="fp32"))
    assert (result["conv2.weight"].start, result["conv2.weight"].sparsities.tolist()) == (1.0, [1.0])
    assert not result["conv2.weight"].has_effect
    assert not result["conv2.weight"].damage.any()
    assert_equals_pruning_a_copy(model, result)


# stopping, and going on


RESUMABLE = ScanConfig(max_se=0.05, precision="fp32")


@pytest.fixture
def uninterrupted(trained, small_rounds):
    """A scan in rounds, refined, and what it told its follower."""
    follower = Follower()
    return scan(trained, DATA, RESUMABLE, on_point=follower), follower.calls


def test_scan_tells_how_far_it_is_to_the_end(uninterrupted):
    result, calls = uninterrupted
    done, known = zip(*calls, strict=True)
    assert list(done) == sorted(done)
    assert list(known) == sorted(known)
    assert all(one <= other for one, other in calls)
    assert calls[-1] == (points(result), points(result))
    assert known[0] < known[-1]


STOPS = [1, 2, 9, 0.3, 0.6, 0.9, -1, 0]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError], ids=["interrupt", "error"])
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("through_bytes", [False, True], ids=["record", "bytes"])
def test_scan_stopped_anywhere_and_gone_on_with_is_the_same_scan(trained, uninterrupted, stop, error, through_bytes):
    expected, calls = uninterrupted
    stop_at = math.ceil(stop * len(calls)) if isinstance(stop, float) else stop if stop > 0 else len(calls) + stop
    record, first, second = ScanRecord(), Follower(stop_at, error), Follower()
    with pytest.raises(error):
        scan(trained, DATA, RESUMABLE, record=record, on_point=first)
    if through_bytes:
        record = ScanRecord.from_bytes(record.to_bytes())
    result = scan(trained, DATA, RESUMABLE, record=record, on_point=second)
    assert result.to_json() == expected.to_json()
    # nothing is measured twice
    assert len(first.calls) + len(second.calls) == len(calls)


@pytest.mark.parametrize("stop", [1, 9, 0.5, 0.9, -1])
def test_scan_gone_on_with_tells_how_far_it_is(trained, uninterrupted, stop):
    result, calls = uninterrupted
    stop_at = math.ceil(stop * len(calls)) if isinstance(stop, float) else stop if stop > 0 else len(calls) + stop
    record, second = ScanRecord(), Follower()
    with pytest.raises(KeyboardInterrupt):
        scan(trained, DATA, RESUMABLE, record=record, on_point=Follower(stop_at))
    scan(trained, DATA, RESUMABLE, record=record, on_point=second)
    done, known = zip(*second.calls, strict=True)
    assert list(done) == sorted(done)
    assert all(one <= other for one, other in second.calls)
    assert (done[-1], known[-1]) == (points(result), points(result))


def test_scan_with_a_whole_record_measures_nothing(trained, small_rounds):
    record, follower = ScanRecord(), Follower()
    first = scan(trained, DATA, RESUMABLE, record=record)
    before = record.to_bytes()
    assert scan(trained, DATA, RESUMABLE, record=record, on_point=follower).to_json() == first.to_json()
    assert follower.calls == []
    assert record.to_bytes() == before


def test_scan_goes_on_in_the_way_that_the_record_was_made(trained, monkeypatch):
    record = ScanRecord(compute=Compute(batch_size=33))
    monkeypatch.setattr(scanner, "choose_compute", None)
    result = scan(trained, DATA, ScanConfig(sparsities=(0.5,)), record=record)
    assert result.compute == "fp32, contiguous, batches of 33"


@pytest.mark.parametrize("stop_at", [None, 1, 7, 30])
@pytest.mark.parametrize("kind", [Small, Noisy, lambda: Untraceable(Small())], ids=["plain", "noisy", "untraceable"])
def test_scan_leaves_everything_as_it_was_also_when_it_is_stopped(kind, stop_at, small_rounds):
    model = kind()
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    weights = prunable_weights(model)
    with torch.no_grad():
        next(iter(weights.values())).view(-1)[0] = -0.0
    frozen = list(weights.values())[-1].requires_grad_(False)
    digest, modes, state = weights_digest(model), [m.training for m in model.modules()], torch.get_rng_state()
    config, follower = replace(RESUMABLE, max_se=0), Follower(stop_at)
    if stop_at is None:
        scan(model, DATA, config, on_point=follower)
    else:
        with pytest.raises(KeyboardInterrupt):
            scan(model, DATA, config, on_point=follower)
    assert weights_digest(model) == digest
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad == (p is not frozen) and p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("stop_at", [1, 8, 30])
def test_scan_stopped_inside_a_forward_pass_leaves_the_network_as_it_was(trained, stop_at):
    model, calls = copy.deepcopy(trained), []

    def fail(*_):
        calls.append(1)
        if len(calls) >= stop_at:
            raise RuntimeError("out of memory")

    handle = model.fc.register_forward_hook(fail)
    digest = weights_digest(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        scan(model, DATA, EXACT)
    handle.remove()
    assert weights_digest(model) == digest


def test_scan_record_through_bytes_is_the_same(trained, small_rounds):
    record = ScanRecord()
    scan(trained, DATA, RESUMABLE, record=record)
    again = ScanRecord.from_bytes(record.to_bytes())
    assert again.compute == record.compute == Compute(batch_size=20)
    assert DENSE in again.losses
    for ours, theirs in ((again.losses, record.losses), (again.right, record.right)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[point], theirs[point]) for point in theirs)
        assert all(ours[point].dtype == theirs[point].dtype for point in theirs)


@pytest.mark.parametrize("compute", [None, Compute(bf16=True, channels_last=True, batch_size=3)])
def test_scan_record_without_measurements_through_bytes_is_the_same(compute):
    again = ScanRecord.from_bytes(ScanRecord(compute=compute).to_bytes())
    assert again == ScanRecord(compute=compute)
    assert again.count(DENSE) == 0


def test_scan_record_of_sparsities_out_of_numpy_through_bytes_is_the_same(trained):
    record = ScanRecord()
    scan(trained, DATA, replace(EXACT, sparsities=tuple(np.linspace(0.25, 1, 4))), record=record)
    assert ScanRecord.from_bytes(record.to_bytes()).losses.keys() == record.losses.keys()


# the number format


def offers_bf16(monkeypatch):
    """`choose_compute` that finds bfloat16 the fastest wherever it may; gives what it was asked."""
    asked = []

    def choose(model, images, *, bf16=True):
        asked.append(bf16)
        return Compute(bf16=bf16, batch_size=50)

    monkeypatch.setattr(scanner, "choose_compute", choose)
    return asked


def test_scan_takes_bfloat16_where_it_is_faster_and_agrees(monkeypatch):
    asked = offers_bf16(monkeypatch)
    result = scan(Colours(0.0), DATA, ScanConfig(sparsities=(0.5, 1.0), max_se=0))
    assert result.compute == "bf16, contiguous, batches of 50"
    assert asked == [True]
    expected = scan(Colours(0.0), DATA, ScanConfig(sparsities=(0.5, 1.0), max_se=0, precision="fp32"))
    for one, other in zip(result.curves, expected.curves, strict=True):
        assert one.loss.dtype == np.float64
        assert one.loss == pytest.approx(other.loss, abs=0.01)
        assert not np.array_equal(one.loss, other.loss)


def test_scan_of_a_network_that_bfloat16_spoils_takes_fp32(monkeypatch):
    asked = offers_bf16(monkeypatch)
    model = Colours(1000.0)  # bfloat16 has steps of 4 there
    assert evaluate(model, DATA.val, DATA).accuracy > 0.9
    result = scan(model, DATA, ScanConfig(sparsities=(0.5,), max_se=0))
    assert result.compute == "fp32, contiguous, batches of 50"
    assert asked == [True, False]
    assert result.baseline.accuracy == evaluate(model, DATA.val, DATA).accuracy


@pytest.mark.parametrize("agrees", [False, True])
def test_scan_goes_by_the_check_of_the_number_format(trained, monkeypatch, agrees):
    offers_bf16(monkeypatch)
    monkeypatch.setattr(scanner._Scanner, "_agrees", lambda *_: agrees)
    result = scan(trained, DATA, ScanConfig(sparsities=(0.5,)))
    assert result.compute.startswith("bf16" if agrees else "fp32")


def test_scan_of_larger_images_takes_fewer_at_a_time_and_as_many_a_point(monkeypatch):
    data = replace(DATA, val=Split(torch.zeros(300, 3, 64, 64, dtype=torch.uint8), torch.arange(300) % 3))
    taken, images = [], scanner._Scanner._images
    monkeypatch.setattr(scanner._Scanner, "_images", lambda *given: taken.append(given[1:]) or images(*given))
    monkeypatch.setattr(scanner, "choose_compute", lambda *_, **__: Compute(batch_size=16))
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    found = scan(model, data, ScanConfig(sparsities=(0.5,), max_se=9.0))
    assert taken == [(0, 4), (0, 128), (0, 64), (64, 128), (128, 192), (192, 256)]
    assert found["2.weight"].count.tolist() == [256]


def test_scan_in_fp32_measures_no_speed(trained, monkeypatch):
    monkeypatch.setattr(scanner, "choose_compute", None)
    assert scan(trained, DATA, EXACT).compute == "fp32, contiguous, batches of 500"


def test_scan_of_a_network_that_runs_contiguous_only_stays_in_that_layout(contiguous_net, tiny_dataset, monkeypatch):
    def seconds(model, images, way):  # channels_last would be chosen
        return 0.5 if way.channels_last else 1.0

    monkeypatch.setattr("netprune.compute.seconds_per_image", seconds)
    found = scan(contiguous_net, tiny_dataset, ScanConfig(sparsities=(0.5, 1.0), max_se=0))
    expected = scan(contiguous_net, tiny_dataset, ScanConfig(sparsities=(0.5, 1.0), max_se=0, precision="fp32"))
    assert "contiguous" in found.compute
    for mine, exact in zip(found.curves, expected.curves, strict=True):
        np.testing.assert_allclose(mine.damage, exact.damage, atol=0.05)


def test_scan_by_default_chooses_for_itself_and_is_near_the_exact_one(trained):
    result = scan(trained, DATA, ScanConfig(sparsities=SPARSITIES, max_se=0))
    expected = scan(trained, DATA, EXACT)
    for one, other in zip(result.curves, expected.curves, strict=True):
        assert one.damage == pytest.approx(other.damage, rel=0.05, abs=0.02)


# bad configurations


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"sparsities": (0.5, 0.4)}, "sparsities"),
        ({"sparsities": (0.5, 0.5)}, "sparsities"),
        ({"sparsities": (0.0, 0.5)}, "sparsities"),
        ({"sparsities": (-0.1,)}, "sparsities"),
        ({"sparsities": (0.5, 1.1)}, "sparsities"),
        ({"sparsities": (math.nan,)}, "sparsities"),
        ({"sparsities": (0.5, math.nan, 0.9)}, "sparsities"),
        ({"max_se": -0.01}, "max_se"),
        ({"max_se": math.nan}, "max_se"),
        ({"max_se": math.inf}, "max_se"),
        ({"precision": "fp16"}, "precision"),
        ({"precision": ""}, "precision"),
    ],
)
def test_scan_config_bad_value_is_refused_by_name(options, word):
    with pytest.raises(InputError, match=f"{word} (is|are)"):
        ScanConfig(**options)


@pytest.mark.parametrize("sparsities", [(), (1.0,), (1,), (1e-9, 0.5, 1)])
def test_scan_config_takes_the_whole_range(sparsities):
    assert ScanConfig(sparsities=sparsities, max_se=0).sparsities == sparsities


@pytest.mark.parametrize("layers", [("conv2.weight",), ("conv1.weight", "fc.weight")])
@pytest.mark.parametrize("wrap", [lambda net: net, Untraceable], ids=["traced", "whole passes"])
def test_scan_of_some_layers_has_their_curves_of_the_whole_scan(trained, layers, wrap):
    model, prefix = wrap(trained), "" if wrap is not Untraceable else "net."
    names = tuple(prefix + layer for layer in layers)
    whole, part = scan(model, DATA, EXACT), scan(model, DATA, replace(EXACT, layers=names))
    assert part.layers == names
    assert part.baseline == whole.baseline
    for name in names:
        assert np.array_equal(part[name].loss, whole[name].loss)
        assert np.array_equal(part[name].damage_se, whole[name].damage_se)


def test_scan_of_a_layer_that_is_not_there_is_refused_with_the_layers(trained):
    with pytest.raises(InputError, match=r"'conv9\.weight': choose from conv1\.weight, conv2\.weight, fc\.weight"):
        scan(trained, DATA, replace(EXACT, layers=("conv9.weight",)))
