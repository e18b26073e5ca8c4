"""Figures: what is drawn is what was measured, and every figure can be drawn."""

import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from netprune.curves import fit
from netprune.evaluation import Evaluation
from netprune.rules import equal_slope, uniform
from netprune.sensitivity import LayerCurve, Sensitivity
from netprune.size import LayerSize, ModelSize
from sweeps import figures


def draw(figure):
    """Render; returns the PNG's length. Warnings are errors here."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return len(file.getvalue())


def line(axes, label):
    return next(artist for artist in axes.lines if artist.get_label() == label)


def points(axes, label):
    return next(c for c in axes.collections if c.get_label() == label).get_offsets()


def sensitivity(layers):
    rng = np.random.default_rng(0)
    return Sensitivity(
        curves=tuple(curve(f"layer{i}.weight", 2 + i % 3, rng) for i in range(layers)),
        baseline=Evaluation(loss=0.4, loss_se=0.01, accuracy=0.87, accuracy_se=0.01, count=100),
        split="val",
        val_digest="",
        digest="",
        max_se=0.02,
        missed=0,
        compute="fp32",
        whole_passes="",
    )


def curve(layer, points, rng):
    return LayerCurve(
        layer=layer,
        size=1000,
        start=0.0,
        sparsities=np.array([*(1 - 0.1 ** np.arange(1, points)), 1.0]),
        loss=rng.uniform(0.5, 3, points),
        damage=np.sort(rng.uniform(0.1, 3, points)),
        damage_se=rng.uniform(0.01, 0.1, points),
        accuracy=rng.uniform(0, 1, points),
        accuracy_se=rng.uniform(0.001, 0.01, points),
        count=np.full(points, 100),
        changed=np.full(points, True),
    )


def size(nonzero):
    layers = [
        LayerSize(name=f"conv{i}.weight", parameters=100 * 10**i, nonzero=n, prunable=True)
        for i, n in enumerate(nonzero)
    ]
    return ModelSize((*layers, LayerSize(name="conv0.bias", parameters=4, nonzero=4, prunable=False)))


@pytest.mark.parametrize("layers", [1, 10, 16])
def test_sensitivity_curves_draw_every_layer_and_the_dense_network(layers):
    scan = sensitivity(layers)
    figure = figures.sensitivity_curves(scan)
    accuracy, damage = figure.axes
    for axes, name, scale, dense in ((accuracy, "accuracy", 100, 87.0), (damage, "damage", 1, 0.0)):
        assert len(axes.containers) == layers
        for container, curve in zip(axes.containers, scan.curves, strict=True):
            x, y = container.lines[0].get_data()
            assert np.allclose(x[:-1], 1 - curve.sparsities[:-1])
            assert 0 < x[-1] < min(x[:-1]), "an empty layer stands beyond the sparsest one"
            assert np.allclose(y, scale * getattr(curve, name))
        assert np.allclose(line(axes, "dense").get_ydata(), dense)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == sorted([*scan.layers, "dense"])
    assert draw(figure) > 1000


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_figures_of_a_damage_that_is_not_finite_draw_what_is_before_it(broken):
    scan = sensitivity(2)
    scan.curves[0].damage[-1] = scan.curves[0].damage_se[-1] = broken
    figure = figures.sensitivity_curves(scan)
    shown = [container.lines[0].get_ydata() for container in figure.axes[1].containers]
    assert np.array_equal(shown[0], scan.curves[0].damage[:-1])
    assert np.array_equal(shown[1], scan.curves[1].damage)
    allocations = figures.allocations(scan, {"equal_slope": equal_slope(scan, 0.5)}, 0.5)
    assert min(draw(figure), draw(allocations)) > 1000


@pytest.mark.parametrize("layers", [1, 16])
def test_allocations_draw_every_rules_densities_and_where_the_last_one_stops(layers):
    scan = sensitivity(layers)
    shapes = {name: torch.Size([size]) for name, size in scan.sizes.items()}
    found = {"uniform": uniform(shapes, 0.2), "equal_slope": equal_slope(scan, 0.2)}
    left, right = figures.allocations(scan, found, 0.2).axes
    for name, sparsity in found.items():
        assert np.allclose(line(right, name).get_xdata(), [max(1 - s, 1e-4) for s in sparsity.values()])
    for name, sparsity in found["equal_slope"].items():
        assert np.allclose(
            line(left, name).get_data(), [[max(1000 * (1 - sparsity), 0.5)], [fit(scan[name])(sparsity)]]
        )
    assert "equal_slope stops at 20 %" in left.get_title()
    assert "at 20 % of all weights" in right.get_title()
    assert draw(left.figure) > 1000


def test_parameters_per_layer_draws_prunable_layers_only():
    figure = figures.parameters_per_layer(size((50, 60, 70)))
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [100, 1000, 10000]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["conv0.weight", "conv1.weight", "conv2.weight"]
    assert draw(figure) > 1000


@pytest.mark.parametrize("nonzero", [(50, 60, 70), (0, 1, 10_000)])
def test_parameters_per_layer_draws_what_is_left_beside_all(nonzero):
    figure = figures.parameters_per_layer(size((100, 1000, 10_000)), size(nonzero))
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [100, 1000, 10_000, *nonzero]
    assert {f"{count:,}" for count in nonzero} <= {text.get_text() for text in axes.texts}
    assert draw(figure) > 1000


@pytest.mark.parametrize("largest", [0.1, 0.0041])
def test_weight_histograms_labels_do_not_run_into_each_other(largest):
    weights = {f"{i}.weight": np.linspace(-largest, largest, 50, dtype=np.float32) for i in range(16)}
    figure = figures.weight_histograms(weights, nonzero_only=False)
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert len(boxes) >= 3
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


@pytest.mark.parametrize("nonzero_only", [False, True])
@pytest.mark.parametrize("layers", [1, 4, 5])
def test_weight_histograms_count_the_weights(layers, nonzero_only):
    rng = np.random.default_rng(0)
    weights = {f"conv{i}.weight": rng.normal(size=(5, 4, 3, 3)).astype(np.float32) for i in range(layers)}
    for values in weights.values():
        values[:2] = 0
    figure = figures.weight_histograms(weights, nonzero_only=nonzero_only)
    assert len(figure.axes) == layers
    shown = 108 if nonzero_only else 180
    for axes, name in zip(figure.axes, weights, strict=True):
        (steps,) = axes.patches
        counts, edges, _ = steps.get_data()
        assert counts.sum() == shown
        assert (edges[0], edges[-1]) == (weights[name].min(), weights[name].max())
        assert axes.get_title() == f"{name}\n{shown} of 180"
    assert draw(figure) > 1000


@pytest.mark.parametrize("nonzero_only", [False, True])
def test_weight_histograms_of_an_empty_layer_can_be_drawn(nonzero_only):
    figure = figures.weight_histograms({"conv.weight": np.zeros((4, 3), np.float32)}, nonzero_only=nonzero_only)
    assert figure.axes[0].get_title() == f"conv.weight\n{0 if nonzero_only else 12} of 12"
    assert draw(figure) > 1000


def test_size_against_accuracy_parts_the_trials_at_the_floor():
    # the first is below the floor by rounding alone, and meets it
    sizes, accuracies = [1000, 2000, 3000, 4000], [0.8 - 1e-12, 0.79, 0.8, 0.85]
    figure = figures.size_against_accuracy(sizes, accuracies, (0.8,), (90_000, 0.9))
    (axes,) = figure.axes
    assert np.allclose(points(axes, "meets the floor"), [[1, 80], [3, 80], [4, 85]])
    assert np.allclose(points(axes, "below the floor"), [[2, 79]])
    assert np.allclose(points(axes, "dense"), [[90, 90]])
    assert np.allclose(line(axes, "floor 80.00 %").get_ydata(), 80)
    assert draw(figure) > 1000


def test_size_against_accuracy_of_several_floors_marks_each_and_what_is_confirmed():
    confirmed = [(3500, 0.83, 0.81), (1500, 0.74, 0.72)]
    figure = figures.size_against_accuracy([1000, 2000, 4000], [0.6, 0.75, 0.85], (0.8, 0.7), (9e4, 0.9), confirmed)
    (axes,) = figure.axes
    assert np.allclose(points(axes, "meets every floor"), [[4, 85]])
    assert np.allclose(points(axes, "meets a lower floor"), [[2, 75]])
    assert np.allclose(points(axes, "below the floor"), [[1, 60]])
    floors = [line(axes, f"floor {floor}.00 %") for floor in (80, 70)]
    assert floors[0].get_linestyle() != floors[1].get_linestyle()
    (drawn,) = axes.containers
    assert np.allclose(drawn.lines[0].get_xydata(), [[3.5, 83], [1.5, 74]])
    assert np.allclose([bar[:, 1] for bar in drawn.lines[2][0].get_segments()], [[81, 83], [72, 74]])
    assert draw(figure) > 1000


def test_size_against_accuracy_front_leaves_no_more_accurate_trial_below_it():
    rng = np.random.default_rng(0)
    sizes, accuracies = rng.integers(1000, 2000, 50), rng.integers(70, 90, 50) / 100
    figure = figures.size_against_accuracy(sizes, accuracies, (0.8,), (90_000, 0.9))
    front = dict(line(figure.axes[0], "front").get_xydata())
    best = {size / 1000: 100 * max(accuracies[sizes <= size]) for size in sizes}
    assert all(np.isclose(accuracy, best[size]) for size, accuracy in front.items())
    assert np.isclose(max(front.values()), 100 * max(accuracies))


@pytest.mark.parametrize("accuracies", [[0.9, 0.9], [0.1, 0.1], []], ids=["all meet", "none meets", "no trial"])
def test_size_against_accuracy_of_one_kind_only_can_be_drawn(accuracies):
    figure = figures.size_against_accuracy([1000, 2000][: len(accuracies)], accuracies, (0.8,), (90_000, 0.9))
    met = len(points(figure.axes[0], "meets the floor"))
    assert met == sum(accuracy > 0.8 for accuracy in accuracies)
    assert draw(figure) > 1000


def test_trial_history_follows_the_smallest_feasible_trial():
    sizes, feasible = [5000, 3000, 4000, 1000, 2000], [False, True, True, False, True]
    figure = figures.trial_history(sizes, feasible)
    (axes,) = figure.axes
    best = line(axes, "best so far").get_ydata()
    expected = [
        min((s for s, f in list(zip(sizes, feasible, strict=True))[: i + 1] if f), default=np.nan) for i in range(5)
    ]
    assert np.allclose(best, np.array(expected) / 1000, equal_nan=True)
    assert line(axes, "meets the floor").get_xdata().tolist() == [2, 3, 5]
    assert line(axes, "below the floor").get_xdata().tolist() == [1, 4]
    assert draw(figure) > 1000


def test_trial_history_marks_stopped_trials_apart():
    figure = figures.trial_history([3000, 2000, 1000], [True, False, False], [False, True, False], "size of it")
    (axes,) = figure.axes
    assert line(axes, "stopped early (size estimated)").get_xdata().tolist() == [2]
    assert line(axes, "below the floor").get_xdata().tolist() == [3]
    assert axes.get_ylabel() == "size of it (kB)"
    assert draw(figure) > 1000


@pytest.mark.parametrize("feasible", [False, True])
def test_trial_history_of_one_trial_can_be_drawn(feasible):
    figure = figures.trial_history([1000], [feasible])
    assert np.isnan(line(figure.axes[0], "best so far").get_ydata()[0]) != feasible
    assert draw(figure) > 1000


@pytest.mark.parametrize("spread", [1.02, 3, 300])
def test_trial_history_of_any_span_has_ticks_that_do_not_overlap(spread):
    figure = figures.trial_history([1000, 1000 * spread], [True, True])
    draw(figure)
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    labels = [label for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert len(labels) >= 2
    assert not overlapping(labels)


def overlapping(texts):
    """Pairs of drawn texts that touch."""
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    return [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


VGG16 = [f"features.{i}.weight" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
VGG16 += [f"classifier.{i}.weight" for i in (0, 3, 6)]


def test_figures_of_sixteen_layers_have_no_labels_that_overlap():
    layers = [LayerSize(name=name, parameters=10**8, nonzero=10**7, prunable=True) for name in VGG16]
    parameters = figures.parameters_per_layer(ModelSize(tuple(layers)), ModelSize(tuple(layers)))
    draw(parameters)
    assert not overlapping([*parameters.axes[0].get_yticklabels(), *parameters.axes[0].texts])
    weights = {name: np.linspace(-1, 1, 1000, dtype=np.float32) for name in VGG16}
    grid = figures.weight_histograms(weights, nonzero_only=False)
    draw(grid)
    assert not overlapping([axes.title for axes in grid.axes])


def test_sensitivity_curves_are_told_apart_without_colour():
    (accuracy, _) = figures.sensitivity_curves(sensitivity(16)).axes
    styles = [(bar.lines[0].get_marker(), bar.lines[0].get_linestyle()) for bar in accuracy.containers]
    assert len(set(styles)) == 16


def test_confusion_draws_counts_and_names_of_the_classes():
    counts = np.array([[5, 1], [0, 4]])
    figure = figures.confusion(counts, ["cat", "an overlong name of a class"])
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["5", "1", "·", "4"]
    assert np.allclose(axes.images[0].get_array(), [[500 / 6, 100 / 6], [0, 100]])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["cat", "an overlong name …"]
    assert draw(figure) > 1000


def test_confusion_of_many_classes_and_of_one_without_images_can_be_drawn():
    counts = np.zeros((100, 100), dtype=np.int64)
    assert draw(figures.confusion(counts, [str(i) for i in range(100)])) > 1000


def test_disagreements_draw_every_image_with_its_three_names():
    images = np.zeros((7, 4, 4, 3), dtype=np.uint8)
    figure = figures.disagreements(images, [("cat", "cat", "dog")] * 7)
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert titles == ["cat\ndense: cat\npruned: dog"] * 7
    assert draw(figure) > 1000


def test_figures_of_names_with_formula_signs_draw_them_as_they_are():
    names = ["_hidden.weight", "$\\broken{$"]
    weights = {name: np.linspace(-1, 1, 10, dtype=np.float32) for name in names}
    assert draw(figures.weight_histograms(weights, nonzero_only=False)) > 1000
    assert draw(figures.confusion(np.eye(2, dtype=np.int64), names)) > 1000
    scan = sensitivity(2)
    curves = [replace(curve, layer=name) for curve, name in zip(scan.curves, names, strict=True)]
    figure = figures.sensitivity_curves(replace(scan, curves=tuple(curves)))
    assert len(figure.legends[0].get_texts()) == 3
    assert draw(figure) > 1000
