"""The space of a search: one overall density says how many weights there are, offsets only share them out."""

import math

import numpy as np
import pytest

from netprune.search_space import REACH, Point, Space

SIZES = {"small": 100, "middle": 2_000, "large": 50_000}
PATH = (
    (0.01, {"small": 0.8, "middle": 0.95, "large": 0.991}),
    (0.1, {"small": 0.4, "middle": 0.7, "large": 0.907}),
    (0.5, {"small": 0.0, "middle": 0.2, "large": 0.51}),
)
SPACE = Space(sizes=SIZES, path=PATH)
ZERO = dict.fromkeys(SIZES, 0.0)


def kept(sparsity):
    return sum(size * (1 - sparsity[name]) for name, size in SIZES.items()) / sum(SIZES.values())


@pytest.mark.parametrize("seed", range(20))
def test_space_at_any_offsets_keeps_the_points_density(seed):
    generator = np.random.default_rng(seed)
    offsets = {name: float(value) for name, value in zip(SIZES, generator.uniform(-REACH, REACH, 3), strict=True)}
    density = float(np.exp(generator.uniform(np.log(SPACE.least), np.log(SPACE.most))))
    assert kept(SPACE.at(Point(density=density, offsets=offsets))) == pytest.approx(density, rel=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_space_locates_what_it_gave(seed):
    generator = np.random.default_rng(seed)
    offsets = {name: float(value) for name, value in zip(SIZES, generator.uniform(-0.3, 0.3, 3), strict=True)}
    sparsity = SPACE.at(Point(density=0.05, offsets=offsets))
    assert SPACE.at(SPACE.locate(sparsity)) == pytest.approx(sparsity, rel=1e-3)


def test_space_without_offsets_is_the_path_scaled_to_its_density():
    for density, sparsity in PATH:
        found = SPACE.at(Point(density=density, offsets=ZERO))
        ratios = [(1 - found[name]) / (1 - sparsity[name]) for name in SIZES if sparsity[name] > 0]
        assert ratios == pytest.approx([ratios[0]] * len(ratios))


def test_space_between_two_knots_interpolates_logarithms_of_densities():
    found = SPACE.at(Point(density=math.sqrt(0.1 * 0.01), offsets=ZERO))
    ratio = (1 - found["small"]) / (1 - found["middle"])
    assert ratio == pytest.approx(math.sqrt(0.6 * 0.2) / math.sqrt(0.3 * 0.05))


def test_space_offset_of_one_layer_gives_it_more_and_takes_from_all_others():
    plain = SPACE.at(Point(density=0.05, offsets=ZERO))
    moved = SPACE.at(Point(density=0.05, offsets={**ZERO, "large": 0.5}))
    assert moved["large"] < plain["large"]
    assert moved["small"] > plain["small"]
    assert moved["middle"] > plain["middle"]


def test_space_keeps_a_weight_of_every_layer_and_none_twice():
    corner = {"small": -REACH, "middle": -REACH, "large": REACH}
    for density in (SPACE.least, SPACE.most):
        found = SPACE.at(Point(density=density, offsets=corner))
        assert all(0 <= found[name] <= 1 - 1 / size for name, size in SIZES.items())


def test_space_locates_an_allocation_out_of_reach_at_its_edge():
    point = SPACE.locate({"small": 1.0, "middle": 0.0, "large": 0.999})
    assert SPACE.least <= point.density <= SPACE.most
    assert point.offsets["middle"] == REACH
    assert all(abs(value) <= REACH for value in point.offsets.values())
    assert SPACE.locate(dict.fromkeys(SIZES, 0.9999)).density == SPACE.least
    assert SPACE.locate(dict.fromkeys(SIZES, 0.0)).density == SPACE.most
