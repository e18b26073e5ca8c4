"""The bound that a winner is accepted by: how often it holds is what it promises."""

import numpy as np
import pytest
from scipy.stats import binomtest

from netprune.confidence import Images, image_margin, interval, lower_bound


@pytest.mark.parametrize(("right", "images"), [(4200, 5000), (355, 359), (359, 359), (0, 50)])
def test_lower_bound_of_equal_seeds_is_wilsons_of_the_images(right, images):
    found = lower_bound([right / images] * 3, Images(images))
    # the same confidence on both sides is 90 % between them
    expected = binomtest(right, images).proportion_ci(0.9, method="wilson").low
    assert found.lower == pytest.approx(expected, abs=2e-3)
    assert found.mean == pytest.approx(right / images)
    assert found.seed_std == pytest.approx(0)


def test_lower_bound_of_seeds_alone_is_students():
    accuracies = [0.80, 0.84, 0.82]
    found = lower_bound(accuracies, Images(10**9))
    half = 2.919986 * np.std(accuracies, ddof=1) / np.sqrt(3)  # t, 95 %, two degrees of freedom
    assert found.lower == pytest.approx(0.82 - half, abs=1e-4)


def test_lower_bound_falls_with_fewer_images_and_with_seeds_that_differ():
    steady = lower_bound([0.84, 0.84], Images(5000)).lower
    assert lower_bound([0.84, 0.84], Images(500)).lower < steady
    assert lower_bound([0.83, 0.85], Images(5000)).lower < steady
    assert lower_bound([0.84] * 4, Images(5000)).lower == pytest.approx(
        steady
    )  # the images are the same for every seed


@pytest.mark.parametrize(("spread", "seeds"), [(0.0, 2), (0.004, 2), (0.004, 3), (0.012, 3)])
def test_lower_bound_holds_as_often_as_it_promises(spread, seeds):
    generator, images, truth, held = np.random.default_rng(0), 2000, 0.85, 0
    repeats = 2000
    for _ in range(repeats):
        of_images = generator.binomial(images, truth) / images - truth  # one set of images for all seeds
        accuracies = truth + of_images + spread * generator.standard_normal(seeds)
        held += lower_bound(list(np.clip(accuracies, 0, 1)), Images(images)).lower <= truth
    assert 0.93 < held / repeats < 0.99


def test_lower_bound_of_a_single_seed_is_refused():
    with pytest.raises(ValueError, match="two"):
        lower_bound([0.9], Images(100))


@pytest.mark.parametrize(("right", "images"), [(4200, 5000), (359, 359), (0, 50)])
def test_interval_is_wilsons_with_95_percent_between_its_ends(right, images):
    expected = binomtest(right, images).proportion_ci(0.95, method="wilson")
    assert interval(right / images, images) == pytest.approx((expected.low, expected.high))


def test_lower_bound_beside_a_dense_network_is_that_of_paired_proportions():
    only_dense, only_pruned, images = 190, 140, 5000
    dense = 0.84
    accuracy, differing = dense + (only_pruned - only_dense) / images, (only_dense + only_pruned) / images
    found = lower_bound([accuracy] * 2, Images(images, dense), [differing] * 2)
    # Agresti & Min 2005, section 2: half an image to each cell
    one, other, whole = only_dense + 0.5, only_pruned + 0.5, images + 2
    error = np.sqrt(one + other - (other - one) ** 2 / whole) / whole
    assert found.image_se == pytest.approx(error)
    assert found.lower == pytest.approx(accuracy - 1.6449 * error, abs=1e-5)
    assert found.lower > lower_bound([accuracy] * 2, Images(images)).lower
    assert image_margin(accuracy, Images(images, dense), differing) == pytest.approx(accuracy - found.lower)
    assert image_margin(accuracy, Images(images, dense)) == image_margin(accuracy, Images(images)), "nothing known yet"


def test_lower_bound_beside_a_dense_network_that_takes_the_same_images_is_not_its_accuracy_itself():
    margin = image_margin(0.84, Images(100, 0.84), 0.0)
    assert 0.01 < margin < 0.03


@pytest.mark.parametrize("differing", [(), (0.05,)])
def test_lower_bound_beside_a_dense_network_without_what_they_differ_on_is_refused(differing):
    with pytest.raises(ValueError, match="how many images the two differ on"):
        lower_bound([0.84, 0.85], Images(5000, 0.84), differing)


@pytest.mark.parametrize(("lost", "gained"), [(0.04, 0.03), (0.01, 0.002), (0.1, 0.1)])
def test_lower_bound_beside_a_dense_network_holds_as_often_as_it_promises(lost, gained):
    generator, images, held, repeats, spread = np.random.default_rng(0), 2000, 0, 2000, 0.002
    for _ in range(repeats):
        only_dense, only_pruned, both, _ = (
            generator.multinomial(images, [lost, gained, 0.8, 0.2 - lost - gained]) / images
        )
        accuracies = both + only_pruned + spread * generator.standard_normal(2)
        dense = both + only_dense
        lower = lower_bound(list(accuracies), Images(images, dense), [only_dense + only_pruned] * 2).lower
        held += lower - dense <= gained - lost
    assert 0.93 < held / repeats < 0.99
