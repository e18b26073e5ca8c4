"""Early stopping: only on an earlier trial's word, and rarely wrong."""

import numpy as np
import pytest

from netprune.stopping import CHECKS, MARGIN, SHORT, LearningCurve, hopeless, is_control

FLOOR = 0.8


def curve(at_half, final):
    return LearningCurve(checks={0.5: at_half}, final=final)


def test_hopeless_without_earlier_trials_is_nobody():
    assert hopeless(0.5, 0.0, [], FLOOR) is None
    assert hopeless(0.25, 0.0, [curve(0.7, 0.7)], FLOOR) is None  # nothing is known of that check


def test_hopeless_is_what_a_better_one_that_ended_below_the_floor_says():
    found = hopeless(0.5, 0.6, [curve(0.65, 0.76), curve(0.62, 0.75), curve(0.75, 0.82)], FLOOR)
    assert found.bound == 0.75
    assert "62.00 %" in found.reason


@pytest.mark.parametrize(
    ("accuracy", "earlier"),
    [
        (0.70, [curve(0.70, 0.75)]),  # not clearly better
        (0.60, [curve(0.65, FLOOR - SHORT / 2)]),  # not clearly below
        (0.60, [curve(0.65, 0.75), curve(0.605, 0.81)]),  # one as bad made it
        (0.60, [curve(0.65, 0.75), curve(0.40, 0.81)]),  # one worse made it
        (0.60, [curve(0.65, 0.85)]),
    ],
)
def test_hopeless_in_doubt_goes_on(accuracy, earlier):
    assert hopeless(0.5, accuracy, earlier, FLOOR) is None


def test_hopeless_on_simulated_studies_stops_many_and_is_seldom_wrong():
    generator = np.random.default_rng(0)
    stopped, wrong, below = 0, 0, 0
    for _ in range(60):
        earlier = []
        for _ in range(24):
            density = np.exp(generator.uniform(np.log(0.01), np.log(0.4)))
            # a sparser network ends lower and gets there later; looks at a thousand images are noisy
            final = 0.85 - 0.004 / density + 0.003 * generator.standard_normal()
            checks = {
                share: final - (1 - share) * (0.02 + 0.004 / density) + 0.012 * generator.standard_normal()
                for share in CHECKS
            }
            verdict = any(hopeless(share, checks[share], earlier, FLOOR) for share in CHECKS)
            below += final < FLOOR
            stopped += verdict
            wrong += verdict and final >= FLOOR
            if not verdict:
                earlier.append(LearningCurve(checks=checks, final=final))
    assert stopped > 0.5 * below
    assert wrong < 0.03 * stopped


def test_is_control_is_one_in_eight_and_the_same_every_time():
    draws = [is_control(number, seed) for seed in range(20) for number in range(100)]
    assert draws == [is_control(number, seed) for seed in range(20) for number in range(100)]
    assert 1 / 8 - 0.03 < np.mean(draws) < 1 / 8 + 0.03


def test_margin_is_about_the_noise_of_a_check():
    assert np.sqrt(0.8 * 0.2 / 1000) / 2 < MARGIN < 2 * np.sqrt(0.8 * 0.2 / 1000)
