"""From which network to go on, and what longer training is worth."""

import numpy as np
import pytest

from netprune.starts import BACK, gain_of_training, nearest

SIZES = {"a": 100, "b": 900}


def both(sparsity):
    return dict.fromkeys(SIZES, sparsity)


def test_nearest_takes_the_sparsest_of_those_that_are_denser():
    earlier = {0: both(0.0), 1: both(0.5), 2: both(0.8), 3: both(0.88)}
    assert nearest(SIZES, both(0.9), earlier, most=3) == [3, 2, 1]


def test_nearest_leaves_out_what_lacks_too_many_of_the_weights():
    wanted = both(0.9)
    enough, too_few = both(1 - 0.1 * (1 - BACK) - 1e-9), both(1 - 0.1 * (1 - BACK) + 1e-3)
    assert nearest(SIZES, wanted, {0: enough, 1: too_few}) == [0]
    # as many in all, but elsewhere
    assert nearest(SIZES, {"a": 0.0, "b": 1.0}, {0: {"a": 1.0, "b": 1 - 100 / 900}}) == []


def test_nearest_of_equals_takes_the_later_and_of_none_gives_none():
    assert nearest(SIZES, both(0.9), {3: both(0.8), 7: both(0.8)}, most=1) == [7]
    assert nearest(SIZES, both(0.9), {}) == []


def simulated(count, *, gain, slope=0.04, noise=0.002, seed=0):
    """Trials of falling density that go on from each other."""
    rng = np.random.default_rng(seed)
    density = np.geomspace(0.3, 0.03, count) * np.exp(rng.normal(0, 0.3, count))
    epochs = np.arange(1, count + 1) * 0.5
    accuracy = 0.9 + slope * np.log(density) + gain * np.log(epochs) + rng.normal(0, noise, count)
    return density.tolist(), epochs.tolist(), accuracy.tolist()


@pytest.mark.parametrize("gain", [0.005, 0.02])
def test_gain_of_training_finds_what_many_trials_show(gain):
    assert gain_of_training(*simulated(40, gain=gain)) == pytest.approx(gain, abs=0.004)


def test_gain_of_training_is_never_a_loss():
    assert gain_of_training(*simulated(40, gain=-0.03)) == 0


def test_gain_of_training_of_few_trials_stays_near_what_is_supposed():
    found = [gain_of_training(*simulated(3, gain=0.0, noise=0.01, seed=seed)) for seed in range(20)]
    assert max(found) < 0.03
