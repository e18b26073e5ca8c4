"""A network's tensors in any number format: every bit back, and the cheapest of the exact codings."""

import numpy as np
import pytest
import torch

from netprune.entropy import DamagedStreamError, Decoder, Encoder
from netprune.tensors import DTYPES, Spec, decode_tensors, encode_tensors, spec

GENERATOR = torch.Generator().manual_seed(0)


def coded(tensors):
    encoder = Encoder()
    encode_tensors(encoder, tensors)
    return encoder.finish()


def roundtrip(tensors):
    decoder = Decoder(*coded(tensors))
    found = decode_tensors(decoder, [spec(name, tensor) for name, tensor in tensors.items()])
    decoder.finish()
    return found


def assert_same_bits(found, tensors):
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        if tensor.numel():
            assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def sparse(shape, density, dtype=torch.float32):
    values = torch.randn(shape, generator=GENERATOR) * 10
    return (values * (torch.rand(shape, generator=GENERATOR) < density)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (6, 5), (4, 3, 3, 3), (4, 0, 3, 3)])
def test_decode_tensors_gives_every_bit_back_in_every_format(dtype, shape):
    tensors = {"a.weight": sparse(shape, 0.4, dtype), "b.bias": sparse((3,), 1.0, dtype)}
    assert_same_bits(roundtrip(tensors), tensors)


def test_decode_tensors_of_a_transposed_tensor_gives_its_values_in_its_order():
    tensors = {"a.weight": sparse((6, 5), 0.5).T}
    assert torch.equal(roundtrip(tensors)["a.weight"], tensors["a.weight"])


def test_decode_tensors_keeps_the_order_of_names_whatever_was_grouped():
    tensors = {"a.bias": torch.ones(2), "a.weight": torch.ones(2, 2), "b.bias": torch.zeros(3), "n": torch.tensor(5)}
    assert_same_bits(roundtrip(tensors), tensors)


def multiples(rows, columns, steps):
    """Small multiples of a step for each row, with the ends of the range in it."""
    whole = torch.randint(-127, 128, (rows, columns), generator=GENERATOR).float()
    whole[:, 0] = 127
    return whole * steps


@pytest.mark.parametrize("step", [0.0123291015625, 1.0, 2.0**-140, 3e35 / 127])
def test_encode_tensors_of_multiples_takes_a_byte_a_value(step):
    steps = torch.linspace(1, 2, 20)[:, None].bfloat16().float() * torch.tensor(step).bfloat16().float()
    tensors = {"a.weight": multiples(20, 900, steps)}
    assert_same_bits(roundtrip(tensors), tensors)
    if step == 2.0**-140:
        return  # subnormal products are rounded, and are no multiples
    side, stream = coded(tensors)
    assert len(side) + len(stream) < 1.05 * 20 * 900 + 700


@pytest.mark.parametrize("spoil", [1.5, float("nan"), float("inf"), -0.0, 2.0**-30])
def test_encode_tensors_of_all_but_one_multiple_keeps_that_one_too(spoil):
    tensors = {"a.weight": multiples(4, 50, torch.full((4, 1), 0.25))}
    tensors["a.weight"][2, 7] = spoil
    assert_same_bits(roundtrip(tensors), tensors)


def test_encode_tensors_of_multiples_with_empty_rows_comes_back():
    tensors = {"a.weight": multiples(6, 300, torch.full((6, 1), 0.5))}
    tensors["a.weight"][[0, 3, 5]] = 0.0
    assert_same_bits(roundtrip(tensors), tensors)


def test_encode_tensors_of_many_short_vectors_shares_their_table():
    alone = sum(len(part) for part in coded({"a.bias": sparse((16,), 1.0)}))
    together = sum(len(part) for part in coded({f"{i}.bias": sparse((16,), 1.0) for i in range(50)}))
    assert together < 0.9 * 50 * alone


def test_decode_tensors_with_values_too_wide_for_their_type_is_refused():
    side, stream = coded({"a": torch.tensor([300, 7], dtype=torch.int32)})
    with pytest.raises(DamagedStreamError, match="BOOL"):
        decode_tensors(Decoder(side, stream), [Spec("a", "BOOL", (2,))])
    with pytest.raises(DamagedStreamError, match="U8"):
        decode_tensors(Decoder(side, stream), [Spec("a", "U8", (2,))])


def test_encode_tensors_leaves_them_as_they_are():
    tensor = sparse((8, 4, 3, 3), 0.2)
    before = tensor.clone()
    coded({"a.weight": tensor})
    assert np.array_equal(tensor.numpy(), before.numpy())
