"""Bit patterns: all of them back, and near the entropy for the kinds of values that files hold."""

import numpy as np
import pytest

from netprune.entropy import UNIFORM_BITS, DamagedStreamError, Decoder, Encoder, entropy_bits
from netprune.words import decode_words, encode_words, words_bits

RNG = np.random.default_rng(0)
GAUSSIAN = RNG.normal(size=20_000).astype(np.float32)
CASES = {
    "none": np.zeros(0, dtype=np.uint32),
    "one": np.array([0xDEADBEEF], dtype=np.uint32),
    "zeros": np.zeros(1000, dtype=np.uint32),
    "alike": np.full(1000, 0x3F800000, dtype=np.uint32),
    "extremes": np.array([0, 2**32 - 1, 1, 2**31], dtype=np.uint32),
    "gaussian": GAUSSIAN.view(np.uint32),
    "half": GAUSSIAN.astype(np.float16).astype(np.float32).view(np.uint32),
    "half bits": GAUSSIAN.astype(np.float16).view(np.uint16).astype(np.uint32),
    "codebook": RNG.normal(size=16).astype(np.float32).view(np.uint32)[RNG.integers(0, 16, 20_000)],
    "noise": RNG.integers(0, 2**32, 20_000, dtype=np.uint32),
    "counting": np.arange(20_000, dtype=np.uint32),
    "bytes": RNG.integers(0, 256, 20_000).astype(np.uint32),
}


def coded(words):
    encoder = Encoder()
    encode_words(encoder, words)
    return encoder.finish()


@pytest.mark.parametrize("name", CASES)
def test_decode_words_gives_every_bit_back(name):
    decoder = Decoder(*coded(CASES[name]))
    assert np.array_equal(decode_words(decoder, len(CASES[name])), CASES[name])
    decoder.finish()


@pytest.mark.parametrize(("name", "bits"), [("noise", 32), ("half", 13.5), ("codebook", 4), ("zeros", 0), ("bytes", 8)])
def test_encode_words_spends_little_more_than_the_information(name, bits):
    side, stream = coded(CASES[name])
    assert 8 * (len(side) + len(stream)) <= 1.01 * bits * len(CASES[name]) + 4500


def test_encode_words_of_gaussian_weights_saves_what_sign_and_exponent_do_not_need():
    words = CASES["gaussian"]
    _, counts = np.unique(words >> 23, return_counts=True)
    side, stream = coded(words)
    assert 8 * (len(side) + len(stream)) < entropy_bits(counts) + 23 * len(words)


@pytest.mark.parametrize("name", CASES)
def test_words_bits_is_near_what_encoding_takes(name):
    side, stream = coded(CASES[name])
    assert words_bits(CASES[name]) == pytest.approx(8 * (len(side) + len(stream)), rel=0.05, abs=200)


@pytest.mark.parametrize("count", [3, 10, 40, 300])
@pytest.mark.parametrize("bits", [4, 16, 30])
def test_words_bits_is_that_of_no_worse_a_split_than_any(count, bits):
    words = np.random.default_rng(count).integers(0, 2**bits, count, dtype=np.uint32) | np.uint32(1)

    def split_at(split):
        _, counts = np.unique(words >> np.uint32(split), return_counts=True)
        return entropy_bits(counts) + 16 * len(counts) + split * count

    looked_at = range(max(0, bits - count.bit_length() - 6), min(bits, UNIFORM_BITS) + 1)
    assert words_bits(words) <= min(map(split_at, looked_at)) + 1e-6


@pytest.mark.parametrize(
    "side",
    [
        b"\x20\x20\x01\x00\x00",  # bits beyond 32
        b"\x00\x1f\x01\x00\x00",  # a field wider than the coder's
        b"\x00\x00\x00",  # a table of nothing
        b"\x00\x00\x02\x05\x00\x00\x00",  # one that does not rise
        b"\x00\x18\x02\xff\x01\x01\x00\x00",  # one beyond the word
        b"\x00\x00\x81\x7f",  # one of too many
        b"\x00\x00",
    ],
)
def test_decode_words_with_a_table_that_cannot_be_is_refused(side):
    with pytest.raises(DamagedStreamError):
        decode_words(Decoder(side, b""), 10)
