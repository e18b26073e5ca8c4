"""The packed file: every bit back, damage noticed."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from netprune.container import seal, unseal
from netprune.errors import InputError
from netprune.files import write_whole
from netprune.header import PackedHeader, header_for
from netprune.masks import apply_masks, make_masks
from netprune.models import Architecture, build_model
from netprune.packing import load, pack, read_packed, unpack
from netprune.weights import prunable_weights, weights_digest

NAN_PAYLOAD = 0x7FC12345


def prune_all(model, sparsity):
    apply_masks(model, make_masks(model, dict.fromkeys(prunable_weights(model), sparsity)))
    return model


def bits(model):
    """Name → dtype, shape and bytes of every tensor."""
    arrays = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}


@pytest.fixture
def packed(tiny_net, tiny_header):
    """A packed file of `tiny_net` at 80 % sparsity."""
    return pack(prune_all(tiny_net, 0.8), tiny_header)


@pytest.mark.parametrize("sparsity", [0.0, 0.01, 0.03, 0.04, 0.5, 0.9, 0.999])
def test_pack_and_unpack_give_every_bit_back(tiny_net, tiny_header, sparsity):
    prune_all(tiny_net, sparsity)
    found = unpack(pack(tiny_net, tiny_header))
    assert bits(found.model) == bits(tiny_net)
    assert found.header == tiny_header
    assert found.model.training


@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_pack_and_unpack_keep_negative_zeros_infinities_and_nan_payloads(tiny_net, tiny_header, sparsity):
    prune_all(tiny_net, sparsity)
    for weight in prunable_weights(tiny_net).values():
        values = weight.detach().view(-1)
        values[:3] = torch.tensor([-0.0, float("inf"), 1e-45])
        values.view(torch.int32)[3] = NAN_PAYLOAD
    found = unpack(pack(tiny_net, tiny_header)).model
    assert found.conv1[0].weight.detach().view(-1).view(torch.int32)[3] == NAN_PAYLOAD
    assert bits(found) == bits(tiny_net)
    given = build_model(tiny_header.architecture, seed=5)
    assert bits(unpack(pack(tiny_net, tiny_header), given).model) == bits(tiny_net)


def test_pack_and_unpack_keep_buffers_after_training_steps(tiny_net, tiny_header):
    for _ in range(3):
        tiny_net(torch.randn(4, 3, 32, 32))
    found = unpack(pack(tiny_net, tiny_header)).model
    assert found.conv1[1].num_batches_tracked == 3
    assert bits(found) == bits(tiny_net)


def test_pack_of_an_all_zero_network_comes_back(tiny_net, tiny_header):
    for tensor in tiny_net.state_dict().values():
        tensor.zero_()
    assert bits(unpack(pack(tiny_net, tiny_header)).model) == bits(tiny_net)


def test_unpack_into_a_network_of_another_number_format_is_refused_and_leaves_it(tiny_net, packed):
    given = copy.deepcopy(tiny_net).half()
    before = bits(given)
    with pytest.raises(InputError, match=r"conv1\.0\.weight is torch\.float32 in the file and torch\.float16 in the"):
        unpack(packed, given)
    assert bits(given) == before


def test_unpack_into_a_network_for_other_classes_is_refused_with_a_mend_that_a_reader_has(packed):
    given = build_model(Architecture(name="net10", num_classes=4, width=2))
    with pytest.raises(InputError, match="another number of classes than the file's 3: build it for as many"):
        unpack(packed, given)


def test_pack_of_another_network_than_the_headers_is_refused_with_the_mend(tiny_net, tiny_header):
    wider = Architecture(name="net10", num_classes=3, width=3)
    two = replace(tiny_header, classes=("a", "b"))
    for model, header in (
        (copy.deepcopy(tiny_net).half(), tiny_header),
        (tiny_net, replace(tiny_header, architecture=wider)),
        (tiny_net, two),
    ):
        with pytest.raises(InputError, match=r"not the net10 that its header names .* or None"):
            pack(model, header)


def test_pack_of_a_half_precision_network_without_an_architecture_comes_back(tiny_net, tiny_header):
    half = copy.deepcopy(tiny_net).half()
    data = pack(half, replace(tiny_header, architecture=None))
    assert bits(unpack(data, copy.deepcopy(tiny_net).half()).model) == bits(half)


def test_pack_leaves_the_network_as_it_is(tiny_net, tiny_header):
    tiny_net.conv1.eval()
    before, modes = bits(tiny_net), [m.training for m in tiny_net.modules()]
    pack(tiny_net, tiny_header)
    assert bits(tiny_net) == before
    assert [m.training for m in tiny_net.modules()] == modes


def test_pack_twice_gives_the_same_bytes(tiny_net, tiny_header):
    assert pack(tiny_net, tiny_header) == pack(tiny_net, tiny_header)


def test_unpack_leaves_the_global_generator_alone(packed):
    before = torch.get_rng_state()
    unpack(packed)
    assert torch.equal(torch.get_rng_state(), before)


def test_unpack_keeps_the_header_as_it_was(tiny_net, tiny_header):
    header = replace(tiny_header, classes=("Käse", "a/b", ""), mean=(1 / 3, 0.1 + 0.2, 0.0), std=(1e-9, 1.0, 2.5))
    assert unpack(pack(tiny_net, header)).header == header


def test_unpack_of_another_image_size_builds_the_network_for_it(tiny_net, tiny_header):
    found = unpack(pack(tiny_net, replace(tiny_header, image_size=64)))
    assert found.header.image_size == 64
    assert found.model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, 3)
    assert bits(found.model) == bits(tiny_net)


def test_pack_for_images_of_32_leaves_their_size_out(tiny_net, tiny_header):
    assert "image_size" not in unseal(pack(tiny_net, tiny_header))[0]
    assert unseal(pack(tiny_net, replace(tiny_header, image_size=33)))[0]["image_size"] == 33


@pytest.mark.parametrize("size", [0, -1, 10**6, 32.0, "32", None, True])
def test_unpack_of_an_image_size_that_cannot_be_is_refused(packed, size):
    header, tables, coded = unseal(packed)
    with pytest.raises(InputError, match="damaged"):
        unpack(seal({**header, "image_size": size}, tables, coded))


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 2000},
        {"mean": (0.5, float("nan"), 0.5)},
        {"std": (0.0, 0.5, 0.5)},
        {"std": (0.5, 0.5)},
    ],
)
def test_pack_of_a_header_that_no_reader_takes_is_refused_as_its_file_is(tiny_net, tiny_header, packed, change):
    with pytest.raises(InputError, match="the header cannot be packed"):
        pack(tiny_net, replace(tiny_header, **change))
    header, tables, coded = unseal(packed)
    with pytest.raises(InputError, match="damaged"):
        unpack(seal({**header, **change}, tables, coded))


def test_pack_of_a_header_of_numpys_numbers_is_as_of_pythons(tiny_net, tiny_header, packed):
    mean, std = (tuple(np.array(values)) for values in (tiny_header.mean, tiny_header.std))
    assert pack(tiny_net, replace(tiny_header, mean=mean, std=std)) == packed
    mean = tuple(np.array(tiny_header.mean, dtype=np.float32))
    assert unpack(pack(tiny_net, replace(tiny_header, mean=mean))).header.mean == tuple(map(float, mean))


class Pair(nn.Module):
    def __init__(self, tie):
        super().__init__()
        self.one, self.other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        if tie:
            self.other.weight = self.one.weight


def test_unpack_of_two_tensors_into_a_network_where_they_are_one_is_refused_and_leaves_it(tiny_header):
    header = replace(tiny_header, architecture=None)
    given = Pair(tie=True)
    before = bits(given)
    with pytest.raises(InputError, match=r"one\.weight and other\.weight are one tensor in the network and two"):
        unpack(pack(Pair(tie=False), header), given)
    assert bits(given) == before
    tied = Pair(tie=True)
    for target in (given, Pair(tie=False)):
        assert bits(unpack(pack(tied, header), target).model) == bits(tied)


def test_unpack_into_a_network_without_values_and_pack_of_one_are_refused_with_the_mend(tiny_header):
    header = replace(tiny_header, architecture=None)
    with torch.device("meta"):
        meta = Pair(tie=False)
    lazy = nn.Sequential(nn.LazyLinear(4, bias=False))
    for network in (meta, lazy):
        with pytest.raises(InputError, match=r"has no values.*on a device, and give it a batch first"):
            pack(network, header)
    with pytest.raises(InputError, match=r"has no values.*on a device"):
        unpack(pack(Pair(tie=False), header), meta)
    with pytest.raises(InputError, match=r"has no values.*give it a batch first"):
        unpack(pack(nn.Sequential(nn.Linear(4, 4, bias=False)), header), lazy)


def test_header_for_a_network_says_what_it_was_trained_on(tiny_net, tiny_dataset, tiny_header):
    assert header_for(tiny_net, tiny_dataset, tiny_header.architecture) == tiny_header
    assert header_for(tiny_net, tiny_dataset).architecture is None


def test_pack_of_a_sparse_network_is_much_smaller():
    architecture = Architecture(name="net10", num_classes=3, width=8)
    model = build_model(architecture)
    header = PackedHeader(
        architecture=architecture, classes=("a", "b", "c"), mean=(0.5,) * 3, std=(0.25,) * 3, dense_digest=""
    )
    parameters = sum(p.numel() for p in model.parameters())
    dense = len(pack(model, header))
    sparse = len(pack(prune_all(model, 0.95), header))
    assert dense < 1.05 * 4 * parameters + 4096
    # 5 % of the values, about 0.3 bits a position, and the biases
    assert sparse < 0.1 * dense


def test_unpack_tensors_that_do_not_fit_the_header_are_refused(packed):
    header, tables, coded = unseal(packed)
    other = {"name": "net10", "num_classes": 3, "width": 3}
    with pytest.raises(InputError, match="damaged"):
        unpack(seal({**header, "architecture": other}, tables, coded))


def test_unpacked_network_can_be_trained(packed, tiny_dataset):
    from netprune.recipes import TrainConfig
    from netprune.training import train

    model = unpack(packed).model
    before = weights_digest(model)
    train(model, tiny_dataset, TrainConfig(epochs=1))
    assert weights_digest(model) != before


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 10, 20, 0.25, 0.5, 0.9, -100, -1])
def test_unpack_cut_short_is_refused(packed, keep):
    length = int(keep * len(packed)) if isinstance(keep, float) else keep % len(packed)
    with pytest.raises(InputError):
        unpack(packed[:length])


def test_unpack_other_magic_is_refused(packed):
    with pytest.raises(InputError, match="not a netprune file"):
        unpack(b"NETPRUNF" + packed[8:])


@pytest.mark.parametrize("version", [0, 1, 3, 255])
def test_unpack_other_version_is_refused_with_the_one_that_is_read(packed, version):
    with pytest.raises(InputError, match=r"another version.*version 2"):
        unpack(packed[:8] + bytes([version]) + packed[9:])


def flips(packed):
    """Copies with one bit flipped: every bit of the first frame's length and header, then a sample of the rest."""
    places = [(i, bit) for i in range(9, 24) for bit in range(8)]
    places += [(i, i % 8) for i in range(24, len(packed), len(packed) // 120)]
    for i, bit in places:
        damaged = bytearray(packed)
        damaged[i] ^= 1 << bit
        yield (i, bit), bytes(damaged)


def test_unpack_with_a_bit_flipped_is_refused_or_a_whole_network(packed, tiny_net):
    shapes = {name: (t.dtype, t.shape) for name, t in tiny_net.state_dict().items()}
    refused = 0
    for place, damaged in flips(packed):
        try:
            found = unpack(damaged)
        except InputError:
            refused += 1
            continue
        except BaseException as error:
            pytest.fail(f"bit {place} flipped: {error!r}")
        assert {name: (t.dtype, t.shape) for name, t in found.model.state_dict().items()} == shapes
    assert refused > 10


def test_unpack_with_a_bit_flipped_never_gives_another_network(packed, tiny_net, tiny_header):
    wrong = []
    for place, damaged in flips(packed):
        try:
            found = unpack(damaged)
        except (InputError, MemoryError):
            continue
        if bits(found.model) != bits(tiny_net) or found.header != tiny_header:
            wrong.append(place)
    assert not wrong, f"{len(wrong)} flips gave another network without a word, the first at {wrong[0]}"


def test_read_packed_names_the_file_in_its_refusals(tmp_path, packed):
    with pytest.raises(InputError, match=r"gone\.netprune"):
        read_packed(tmp_path / "gone.netprune")
    (tmp_path / "cut.netprune").write_bytes(packed[:-50])
    with pytest.raises(InputError, match=r"cut\.netprune.*damaged"):
        read_packed(tmp_path / "cut.netprune")
    with pytest.raises(InputError, match=str(tmp_path)):
        read_packed(tmp_path)


def test_load_gives_what_was_written(tmp_path, packed, tiny_net):
    write_whole(tmp_path / "net.netprune", packed)
    assert (tmp_path / "net.netprune").read_bytes() == packed
    assert bits(load(str(tmp_path / "net.netprune"))) == bits(tiny_net)
