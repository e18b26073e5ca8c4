"""The benchmark's rival of a pruned network has as many bytes, and no more."""

import pytest

from benchmarks.rival import file_bytes, trained, widest
from netprune.errors import InputError
from netprune.quantise import Values
from netprune.recipes import recipe


@pytest.mark.parametrize("values", ["fp32", "int8", "codebook:4"])
def test_widest_rival_is_the_last_whose_file_is_not_above_the_size(tiny_dataset, values):
    how = Values.parse(values)
    width = widest(60_000, tiny_dataset, how)
    assert file_bytes(width, tiny_dataset, how) <= 60_000 < file_bytes(width + 1, tiny_dataset, how)


def test_widest_rival_of_no_bytes_is_refused(tiny_dataset):
    with pytest.raises(InputError, match="no Net10 has a file of 500 bytes"):
        widest(500, tiny_dataset, Values.parse("fp32"))


def test_trained_rivals_file_is_about_as_long_as_was_foretold(tiny_dataset):
    how = Values.parse("int8")
    found = trained(4, tiny_dataset, recipe("fast", epochs=1, batch_size=16), how, "cpu")
    # after one epoch weights are uniform still, as they were drawn: that takes more bits than a normal distribution
    assert found.packed_bytes == pytest.approx(file_bytes(4, tiny_dataset, how), rel=0.1)
    assert 0 <= found.val <= 100
    assert 0 <= found.test <= 100
