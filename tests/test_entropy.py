"""Tables and the range coder: everything back, at the price of the entropy, and damage noticed."""

import numpy as np
import pytest

from netprune.entropy import DamagedStreamError, Decoder, Encoder, entropy_bits


def test_decoder_reads_what_an_encoder_wrote_in_order():
    rng = np.random.default_rng(0)
    symbols = rng.choice(4, size=1000, p=[0.7, 0.2, 0.1, 0.0])
    fields = rng.integers(0, 1 << 24, 500)
    encoder = Encoder()
    encoder.byte(7)
    encoder.number(300)
    encoder.symbols(symbols, encoder.frequencies(np.bincount(symbols, minlength=4)))
    encoder.uniform(fields, 1 << 24)
    decoder = Decoder(*encoder.finish())
    assert (decoder.byte(), decoder.number(300)) == (7, 300)
    assert np.array_equal(decoder.symbols(decoder.frequencies(4), 1000), symbols)
    assert np.array_equal(decoder.uniform(1 << 24, 500), fields)
    decoder.finish()


@pytest.mark.parametrize("counts", [[90_000, 9_000, 900, 90], [1, 99_999], [25_000] * 4])
def test_encoder_spends_the_entropy(counts):
    symbols = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    encoder = Encoder()
    encoder.symbols(symbols, encoder.frequencies(np.array(counts)))
    _, coded = encoder.finish()
    # two words of the coder's state, and 1/12 octave of the table's grain
    assert 8 * len(coded) <= 1.001 * entropy_bits(np.array(counts)) + 64


@pytest.mark.parametrize("value", [0, 127, 128, 16_383, 16_384, 2**32 - 1])
def test_number_of_any_size_comes_back(value):
    encoder = Encoder()
    encoder.number(value)
    assert Decoder(*encoder.finish()).number(2**32 - 1) == value


def test_entropy_bits_equals_the_definition():
    counts = np.array([[3, 1, 0], [5, 5, 5]])
    shares = counts / counts.sum(1, keepdims=True)
    logs = np.log2(shares, where=shares > 0, out=np.zeros_like(shares))
    np.testing.assert_allclose(entropy_bits(counts), -(counts * logs).sum(1))


def test_symbols_and_fields_of_one_value_cost_nothing():
    encoder = Encoder()
    encoder.symbols(np.zeros(1000, dtype=np.int64), np.ones(1))
    encoder.uniform(np.zeros(1000, dtype=np.int64), 1)
    side, coded = encoder.finish()
    assert (side, coded) == (b"", b"")
    decoder = Decoder(side, coded)
    assert not decoder.symbols(np.ones(1), 1000).any()
    assert not decoder.uniform(1, 1000).any()


def test_decoder_with_tables_that_end_early_is_refused():
    with pytest.raises(DamagedStreamError, match="end early"):
        Decoder(b"\x00", b"").frequencies(2)


def test_decoder_with_an_empty_table_is_refused():
    with pytest.raises(DamagedStreamError, match="empty"):
        Decoder(b"\xff\xff", b"").frequencies(2)


def test_decoder_with_a_number_above_its_bound_is_refused():
    with pytest.raises(DamagedStreamError, match="above 100"):
        Decoder(b"\x65", b"").number(100)
    with pytest.raises(DamagedStreamError, match="above"):
        Decoder(b"\xff" * 20, b"").number(2**80)


@pytest.mark.parametrize(("side", "coded"), [(b"\x00", b""), (b"", b"\x01\x00\x00\x00" * 5)])
def test_decoder_finish_with_something_left_is_refused(side, coded):
    with pytest.raises(DamagedStreamError, match="longer"):
        Decoder(side, coded).finish()


def test_decoder_of_half_a_word_is_refused():
    with pytest.raises(DamagedStreamError, match="whole words"):
        Decoder(b"", b"\x00" * 6)


def test_decoder_of_words_that_no_encoder_wrote_is_refused():
    decoder = Decoder(b"", b"\xff" * 80)
    with pytest.raises(DamagedStreamError, match="does not fit"):
        decoder.symbols(np.array([0.5, 0.2, 0.3]), 50)
