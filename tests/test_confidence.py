"""The bound that a winner is accepted by: how often it holds is what it promises."""

import numpy as np
import pytest
from scipy.stats import binomtest

from netprune.confidence import interval, least_accuracy, lower_bound, paired_change


@pytest.mark.parametrize(("right", "images"), [(4200, 5000), (355, 359), (359, 359), (0, 50)])
def test_lower_bound_of_equal_seeds_is_wilsons_of_the_images(right, images):
    found = lower_bound([right / images] * 3, images)
    # the same confidence on both sides is 90 % between them
    expected = binomtest(right, images).proportion_ci(0.9, method="wilson").low
    assert found.lower == pytest.approx(expected, abs=2e-3)
    assert found.mean == pytest.approx(right / images)
    assert found.seed_std == pytest.approx(0)


def test_lower_bound_of_seeds_alone_is_students():
    accuracies = [0.80, 0.84, 0.82]
    found = lower_bound(accuracies, 10**9)
    half = 2.919986 * np.std(accuracies, ddof=1) / np.sqrt(3)  # t, 95 %, two degrees of freedom
    assert found.lower == pytest.approx(0.82 - half, abs=1e-4)


def test_lower_bound_falls_with_fewer_images_and_with_seeds_that_differ():
    steady = lower_bound([0.84, 0.84], 5000).lower
    assert lower_bound([0.84, 0.84], 500).lower < steady
    assert lower_bound([0.83, 0.85], 5000).lower < steady
    assert lower_bound([0.84] * 4, 5000).lower == pytest.approx(steady)  # the images are the same for every seed


@pytest.mark.parametrize(("spread", "seeds"), [(0.0, 2), (0.004, 2), (0.004, 3), (0.012, 3)])
def test_lower_bound_holds_as_often_as_it_promises(spread, seeds):
    generator, images, truth, held = np.random.default_rng(0), 2000, 0.85, 0
    repeats = 2000
    for _ in range(repeats):
        of_images = generator.binomial(images, truth) / images - truth  # one set of images for all seeds
        accuracies = truth + of_images + spread * generator.standard_normal(seeds)
        held += lower_bound(list(np.clip(accuracies, 0, 1)), images).lower <= truth
    assert 0.93 < held / repeats < 0.99


def test_lower_bound_of_a_single_seed_is_refused():
    with pytest.raises(ValueError, match="two"):
        lower_bound([0.9], 100)


@pytest.mark.parametrize(("right", "images"), [(4200, 5000), (359, 359), (0, 50)])
def test_interval_is_wilsons_with_95_percent_between_its_ends(right, images):
    expected = binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert interval(right / images, images) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("floor", "images"), [(0.8, 5000), (0.9866, 359), (0.5, 20), (0.01, 100)])
def test_least_accuracy_has_the_floor_for_its_lower_bound(floor, images):
    found = least_accuracy(floor, images)
    assert lower_bound([found, found], images).lower == pytest.approx(floor, abs=1e-9)
    assert lower_bound([found - 1e-6] * 2, images).lower < floor


@pytest.mark.parametrize(("floor", "images"), [(0.9926, 359), (1.0, 10**6)])
def test_least_accuracy_is_infinite_where_no_mistake_at_all_is_not_enough(floor, images):
    assert lower_bound([1.0, 1.0], images).lower < floor
    assert least_accuracy(floor, images) == float("inf")


def test_lower_bound_of_an_average_has_the_noises_of_its_seeds_around_its_own_accuracy():
    seeds = [0.80, 0.82]
    of_seeds, of_average = lower_bound(seeds, 5000), lower_bound(seeds, 5000, average=0.83)
    assert of_average.mean == 0.83
    assert of_average.seed_std == of_seeds.seed_std
    assert of_seeds.mean - of_seeds.lower == pytest.approx(of_average.mean - of_average.lower, rel=0.05)
    assert of_average.lower < lower_bound([0.83, 0.83], 5000).lower


@pytest.mark.parametrize("shares", [(0.8, 0.7), (0.7, 0.9), (0.0, 1.0), (1.0, 1.0)])
def test_paired_change_is_mean_and_standard_error_of_the_differences_image_by_image(shares):
    rng = np.random.default_rng(0)
    one, other = (rng.random(400) < share for share in shares)
    differences = one.astype(float) - other
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    found = paired_change(gained, lost, 400)
    assert found.accuracy == pytest.approx(differences.mean())
    assert found.se == pytest.approx(differences.std() / 20)
    back = paired_change(lost, gained, 400)
    assert (back.accuracy, back.se) == (-found.accuracy, found.se)
