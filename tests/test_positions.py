"""Which weights are kept: every mask back, for fewer bits than its entropy where rows and columns differ."""

import numpy as np
import pytest

from netprune.entropy import DamagedStreamError, Decoder, Encoder, entropy_bits
from netprune.positions import cell_shape, decode_positions, encode_positions
from netprune.words import encode_words

RNG = np.random.default_rng(0)


def coded(kept):
    encoder = Encoder()
    encode_positions(encoder, kept)
    return encoder.finish()


def entropy(kept):
    return float(entropy_bits(np.array([kept.sum(), (~kept).sum()])))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 4, 3, 3), (8, 4, 9)),
        ((8, 4), (8, 4, 1)),
        ((8, 4, 1, 1), (8, 4, 1)),
        ((8, 4, 5), (8, 4, 5)),
        ((8, 4, 5, 5), (8, 20, 5)),
        ((8, 4, 3, 3, 3), (8, 12, 9)),
        ((8, 4, 13, 13), (8, 676, 1)),
    ],
)
def test_cell_shape_is_a_kernel_or_the_largest_part_of_one_that_can_be_listed(shape, expected):
    assert cell_shape(shape) == expected


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (5, 3, 9), (40, 30, 9), (7, 11, 12), (50, 60, 1), (3, 100, 5)])
@pytest.mark.parametrize("density", [0.0, 0.001, 0.1, 0.5, 0.9, 1.0])
def test_decode_positions_gives_the_mask_back(shape, density):
    kept = RNG.random(shape) < density
    decoder = Decoder(*coded(kept))
    assert np.array_equal(decode_positions(decoder, *shape), kept)
    decoder.finish()


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3, 0.9])
def test_encode_positions_of_a_structureless_mask_takes_its_entropy(density):
    kept = RNG.random((256, 128, 9)) < density
    side, stream = coded(kept)
    assert 8 * (len(side) + len(stream)) < 1.005 * entropy(kept) + 200


def test_encode_positions_of_rows_and_columns_that_differ_takes_less_than_the_entropy():
    density = np.exp(RNG.normal(size=(256, 1, 1)) + RNG.normal(size=(1, 128, 1))) * 0.01
    kept = RNG.random((256, 128, 9)) < density
    side, stream = coded(kept)
    assert 8 * (len(side) + len(stream)) < 0.9 * entropy(kept)


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_encode_positions_spends_nothing_on_an_axis_along_which_all_is_alike(axis):
    densities = np.geomspace(0.01, 0.5, 16)
    kept = RNG.random((16, 2048)) < densities[:, None]
    entropies = sum(float(entropy_bits(np.array([row.sum(), (~row).sum()]))) for row in kept)
    side, stream = coded((kept if axis == 0 else kept.T)[:, :, None])
    assert 8 * (len(side) + len(stream)) < 1.03 * entropies + 16 * 8


def test_encode_positions_of_empty_channels_spends_nothing_on_them():
    kept = np.zeros((64, 64, 9), dtype=bool)
    kept[:8, :8] = RNG.random((8, 8, 9)) < 0.5
    side, stream = coded(kept)
    # 576 weights of a bit each, and a bit for every row and column
    assert 8 * (len(side) + len(stream)) < 576 + 128 + 300


def test_encode_positions_of_clustered_kernels_takes_less_than_the_entropy():
    whole = RNG.random((64, 64, 1)) < 0.1
    kept = np.broadcast_to(whole, (64, 64, 9)).copy()
    side, stream = coded(kept)
    assert 8 * (len(side) + len(stream)) < 0.2 * entropy(kept)


def test_decode_positions_with_a_class_beyond_a_byte_is_refused():
    encoder = Encoder()
    encoder.byte(0)
    encode_words(encoder, np.array([200], dtype=np.uint32))
    encode_words(encoder, np.array([1], dtype=np.uint32))
    with pytest.raises(DamagedStreamError, match="fuller"):
        decode_positions(Decoder(*encoder.finish()), 1, 1, 9)
