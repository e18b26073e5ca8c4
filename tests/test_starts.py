"""From which network to go on."""

from netprune.starts import BACK, nearest

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
