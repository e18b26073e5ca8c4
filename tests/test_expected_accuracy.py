"""What accuracy to expect of a density after so many finetune epochs."""

import math

import numpy as np
import pytest

from netprune.recovery import GAIN, LEAST_SLOPE, Recovery


def simulated(count, *, gain, slope=0.04, noise=0.002, seed=0):
    """Trials of falling density that go on from each other."""
    rng = np.random.default_rng(seed)
    density = np.geomspace(0.15, 0.06, count) * np.exp(rng.normal(0, 0.3, count))
    epochs = np.arange(1, count + 1) * 0.5
    accuracy = 0.9 + slope * np.log(density) + gain * np.log(epochs) + rng.normal(0, noise, count)
    return density.tolist(), epochs.tolist(), accuracy.tolist()


@pytest.mark.parametrize("gain", [0.005, 0.02])
def test_recovery_of_many_trials_finds_slope_and_gain(gain):
    found = Recovery.fit(*simulated(40, gain=gain), near=0.1)
    assert found.gain == pytest.approx(gain, abs=0.004)
    assert found.slope == pytest.approx(0.04, abs=0.004)


def test_recovery_is_never_a_loss_of_training_or_of_weights():
    found = Recovery.fit(*simulated(40, gain=-0.03, slope=-0.03), near=0.1)
    assert found.gain == 0
    assert found.slope == LEAST_SLOPE


def test_recovery_of_few_trials_stays_near_what_is_supposed():
    found = [Recovery.fit(*simulated(3, gain=0.0, noise=0.01, seed=seed), near=0.1).gain for seed in range(20)]
    assert max(found) < 0.03
    assert Recovery.fit([0.2], [1.0], [0.8], near=0.2).more(1, math.e) == pytest.approx(GAIN)


def test_recovery_heeds_trials_near_the_density_and_hardly_those_far_from_it():
    # flat above 0.2, 0.2 an e-fold below
    densities = [0.8, 0.6, 0.4, 0.3, 0.1, 0.08, 0.06, 0.05]
    accuracies = [0.9] * 4 + [0.8 + 0.2 * math.log(d / 0.1) for d in densities[4:]]
    assert Recovery.fit(densities, [1.0] * 8, accuracies, near=0.06).slope > 0.14
    assert Recovery.fit(densities, [1.0] * 8, accuracies, near=0.8).slope < 0.02


@pytest.mark.parametrize("epochs", [1.0, 3.0])
def test_recovery_density_is_the_one_that_comes_to_the_accuracy(epochs):
    found = Recovery.fit(*simulated(40, gain=0.01, noise=0.0), near=0.1)
    wanted = math.exp((0.82 - 0.9 - 0.01 * math.log(epochs)) / 0.04)
    assert found.density_at(0.82, epochs) == pytest.approx(wanted, rel=0.05)
    assert found.density_at(0.99, epochs) > 1
    assert found.density_at(-1000.0, epochs) == pytest.approx(0.0)
