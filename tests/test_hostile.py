"""Files that somebody has tampered with: one clear error and bounded memory, never a wrong network."""

import gc
import json
import random
import subprocess
import sys
import tracemalloc
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zstandard
from torch import nn

from netprune.container import CODED, LENGTH_BYTES, MAGIC, METADATA, TABLES, VERSION, seal, unseal
from netprune.errors import InputError
from netprune.header import PackedHeader
from netprune.masks import apply_masks, make_masks
from netprune.models import Architecture, build_model
from netprune.packing import pack, unpack
from netprune.quantise import Values, quantise
from netprune.weights import prunable_weights, weights_digest


@pytest.fixture(params=["fp32", "int8", "codebook:4"])
def packed(request, tiny_net, tiny_header):
    """A file with positions, words and, for int8, steps."""
    apply_masks(tiny_net, make_masks(tiny_net, dict.fromkeys(prunable_weights(tiny_net), 0.8)))
    quantise(tiny_net, Values.parse(request.param))
    return pack(tiny_net, tiny_header)


def mutate_bytes(data, rng):
    """Some of: bits flipped, bytes set, a piece cut out, doubled, or put elsewhere."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(data)) if data else 0
        length = min(rng.choice([1, 2, 4, 8, 50]), len(data) - at)
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            data[at : at + length] = rng.choice([b"\x00", b"\xff", b"\x7f", b"\x80"]) * length
        else:
            del data[at:]
    return bytes(data)


NUMBERS = [0, 1, -1, 2, 3, 255, 2**31, 2**63, 2**70, 10**30, 0.5, float("nan"), None, True, "3", [], {}]


def mutate_json(value, rng):
    """One place of a JSON value replaced by something that does not belong there."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        name = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != name}
        return {**value, name: mutate_json(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.95:
        place = rng.randrange(len(value))
        if rng.random() < 0.1:
            return value[:place] + value[place + 1 :]
        return [*value[:place], mutate_json(value[place], rng), *value[place + 1 :]]
    return rng.choice(NUMBERS)


def mutants(packed, count):
    """Mutated files; two thirds have checksums that hold, so that what is inside is reached."""
    rng = random.Random(0)
    for number in range(count):
        header, tables, coded = unseal(packed)
        if number % 3 == 0:
            yield mutate_bytes(packed, rng)
        elif number % 3 == 1:
            yield seal(json.loads(json.dumps(mutate_json(header, rng))), tables, coded)
        elif rng.random() < 0.5:
            yield seal(header, mutate_bytes(tables, rng), coded)
        else:
            yield seal(header, tables, mutate_bytes(coded, rng))


@pytest.mark.parametrize("count", [170, pytest.param(3_400, marks=pytest.mark.slow)])
def test_unpack_of_mutated_files_is_refused_or_the_same_network(packed, tiny_net, count):
    digest, messages = weights_digest(tiny_net), []
    for number, mutant in enumerate(mutants(packed, count)):
        try:
            with warnings.catch_warnings(action="error"):
                found = unpack(mutant)
        except InputError as error:
            messages.append(str(error))
            continue
        except BaseException as error:
            pytest.fail(f"mutant {number}: {error!r}")
        # what changed was the header's own matter, such as the name of a class
        assert weights_digest(found.model) == digest, f"mutant {number}"
    assert len(messages) > 0.8 * count
    assert all(message and "\n" not in message for message in messages)


def tampered(packed, **changes):
    header, tables, coded = unseal(packed)
    return seal({**header, **changes}, tables, coded)


@contextmanager
def little_memory():
    """Less than 64 MB of Python's (numpy's, zstd's), and of the process, which counts torch's too."""
    gc.collect()  # what earlier tests left would make room meanwhile
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: it may have been large before
    before = peak_bytes()
    tracemalloc.start()
    yield
    traced = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert traced < 64e6
    assert peak_bytes() - before < 64e6


def peak_bytes():
    """The most memory that this process has had since its peak was begun anew."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def test_little_memory_after_a_large_peak_still_fails_for_much_memory():
    torch.zeros(150_000_000)
    with pytest.raises(AssertionError), little_memory():
        torch.zeros(100_000_000)  # far more than the system may take back of other pages at the same time


@pytest.mark.parametrize("width", [1000, 10**4, 10**6, 10**9, 10**18, 10**30])
def test_unpack_of_a_huge_declared_network_is_refused_without_its_memory(packed, width):
    huge = tampered(packed, architecture={"name": "net10", "num_classes": 3, "width": width})
    with little_memory(), pytest.raises(InputError, match="damaged"):
        unpack(huge)


def test_unpack_of_huge_declared_shapes_is_refused_with_the_limit(packed):
    header, _, _ = unseal(packed)
    header["tensors"][0][2] = [2**20, 2**20]
    with pytest.raises(InputError, match=r"above the limit of 1,073,741,824.*max_bytes"):
        unpack(tampered(packed, tensors=header["tensors"]))


@pytest.mark.parametrize("shape", [[10**4000] * 2, [2**39] * 400, [2**70, 0], [1] * 65])
@pytest.mark.parametrize("known", [True, False])
def test_unpack_of_shapes_that_no_tensor_has_is_refused_at_once(packed, private, shape, known):
    header, tables, coded = unseal(packed if known else private[1])
    header["tensors"][0][2] = shape
    with pytest.raises(InputError, match=r"damaged: .* is a tensor of no known kind"):
        unpack(seal(header, tables, coded), None if known else Private())


def test_unpack_obeys_a_limit_of_the_callers_own(packed, tiny_net):
    size = sum(tensor.numel() * tensor.element_size() for tensor in tiny_net.state_dict().values())
    assert weights_digest(unpack(packed, max_bytes=size).model) == weights_digest(tiny_net)
    with pytest.raises(InputError, match="limit"):
        unpack(packed, max_bytes=size - 1)


@pytest.fixture(scope="module")
def bomb():
    """256 MiB of zeros, compressed by another process: what this one has needed would hide what a test needs."""
    script = "import sys; from netprune.container import seal"
    script += "; sys.stdout.buffer.write(seal({'pad': 'x'}, bytes(2**28), b''))"
    return subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True).stdout


def test_unpack_of_a_frame_that_grows_is_refused_without_its_memory(bomb):
    assert len(bomb) < 2**17
    with little_memory(), pytest.raises(InputError, match="more than it can hold"):
        unpack(bomb)


def many_lists():
    """A container's header of 15 MiB, with lists that take twenty times as much."""
    return json.dumps({"__metadata__": {METADATA: '{"x":[' + "[]," * (5 << 20) + "[]]}"}})


def many_tensors():
    """A container's header of sixty thousand empty tensors."""
    return json.dumps({str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(60_000)})


@pytest.mark.parametrize("make_header", [many_lists, many_tensors])
def test_unpack_of_a_header_that_grows_is_refused_without_its_memory(make_header):
    header = make_header().encode()
    container = len(header).to_bytes(8, "little") + header
    frames = [zstandard.ZstdCompressor(write_checksum=True).compress(part) for part in (container, b"")]
    growing = MAGIC + bytes([VERSION]) + len(frames[0]).to_bytes(LENGTH_BYTES, "little") + b"".join(frames)
    with little_memory(), pytest.raises(InputError, match="its header is longer than it can be"):
        unpack(growing)


def test_unpack_of_weights_that_are_not_those_of_the_digest_is_refused(packed):
    with pytest.raises(InputError, match="not those that were packed"):
        unpack(tampered(packed, digest="0" * 64))


class Private(nn.Module):
    """A network of the user's own class, with tied weights and numbers of several formats."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(6, 6, bias=False)
        self.decoder = nn.Linear(6, 6)
        self.decoder.weight = self.encoder.weight
        self.narrow = nn.Parameter(torch.randn(3, 4).half())
        self.register_buffer("steps", torch.tensor([1, -5]))

    def forward(self, x):
        return self.decoder(self.encoder(x))


@pytest.fixture
def private(tiny_header):
    """A private network and its file."""
    model = Private()
    return model, pack(model, replace(tiny_header, architecture=None))


def test_unpack_of_a_private_class_fills_the_callers_module(private):
    model, data = private
    given = Private().eval()
    found = unpack(data, given)
    assert found.model is given
    assert not given.training
    assert weights_digest(given) == weights_digest(model)
    assert given.decoder.weight is given.encoder.weight


def test_unpack_of_a_private_class_without_a_module_is_refused_with_the_mend(private):
    with pytest.raises(InputError, match=r"into=network"):
        unpack(private[1])


def test_unpack_into_a_module_that_does_not_fit_is_refused_and_leaves_it(private):
    other = nn.Linear(6, 6)
    before = weights_digest(other)
    with pytest.raises(InputError, match="another network"):
        unpack(private[1], other)
    assert weights_digest(other) == before


@pytest.mark.parametrize("shape", [[2**12, 2**13], [2**39, 0], [2**39, 2**39, 0]])
def test_unpack_into_a_module_of_huge_shapes_is_refused_before_anything_is_decoded(private, shape):
    header, _, _ = unseal(private[1])
    header["tensors"][0][1:] = ["BOOL", shape]
    huge = tampered(private[1], tensors=header["tensors"])
    with little_memory(), pytest.raises(InputError, match="the weights do not fit"):
        unpack(huge, Private())


def test_unpack_into_a_module_needs_no_larger_limit(private):
    assert unpack(private[1], Private(), max_bytes=1)


def test_unpack_into_a_module_works_for_known_architectures_too(packed, tiny_net, tiny_header):
    given = build_model(tiny_header.architecture, seed=5)
    assert weights_digest(unpack(packed, given).model) == weights_digest(tiny_net)


def test_unpack_of_an_alias_of_nothing_is_refused(private):
    for aliases in ({"decoder.weight": "gone"}, {"encoder.weight": "encoder.weight"}, {"a": 3}, ["a"]):
        with pytest.raises(InputError, match="damaged"):
            unpack(tampered(private[1], aliases=aliases), Private())


class Extra(nn.Linear):
    """A module with state that is no tensor."""

    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Extra(2, 2), "_extra_state"),
        (nn.Linear(2, 2, device="meta"), "weight"),
        (nn.Linear(2, 2, dtype=torch.complex64), "weight"),
    ],
)
def test_pack_of_a_state_that_is_no_plain_tensor_is_refused_naming_it(tiny_header, model, named):
    with pytest.raises(InputError, match=named):
        pack(model, replace(tiny_header, architecture=None))


def test_seal_and_unseal_are_inverse_and_the_container_is_safetensors():
    import safetensors.numpy

    data = seal({"a": [1, "ü"]}, b"tables", b"coded")
    assert unseal(data) == ({"a": [1, "ü"]}, b"tables", b"coded")
    # as a stranger would read it, by the format's page alone
    first = int.from_bytes(data[9:13], "little")
    frames = data[13 : 13 + first], data[13 + first :]
    container = b"".join(zstandard.ZstdDecompressor().decompress(frame) for frame in frames)
    arrays = safetensors.numpy.load(container)
    assert {name: array.tobytes() for name, array in arrays.items()} == {TABLES: b"tables", CODED: b"coded"}
    assert METADATA.encode() in container


def test_file_of_a_network_loads_in_a_process_that_knows_only_netprune(tmp_path, packed, tiny_net):
    import subprocess
    import sys

    (tmp_path / "net.netprune").write_bytes(packed)
    code = (
        "import sys, netprune\nfrom netprune.weights import weights_digest\n"
        "print(weights_digest(netprune.load('net.netprune')))\n"
        "assert not {'mlflow', 'optuna', 'sweeps', 'pickle5'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == weights_digest(tiny_net)


def test_architecture_of_the_header_is_looked_up_and_never_imported(packed):
    with pytest.raises(InputError, match=r"unknown model|damaged"):
        unpack(tampered(packed, architecture={"name": "os.system", "num_classes": 3, "width": 2}))


def test_pack_of_sparser_networks_is_smaller():
    architecture = Architecture(name="net10", num_classes=3, width=8)
    header = PackedHeader(
        architecture=architecture, classes=("a", "b", "c"), mean=(0.5,) * 3, std=(0.25,) * 3, dense_digest=""
    )
    sizes = []
    for sparsity in (0.0, 0.5, 0.9, 0.95, 0.98, 0.99, 1.0):
        model = build_model(architecture)
        apply_masks(model, make_masks(model, dict.fromkeys(prunable_weights(model), sparsity)))
        sizes.append(len(pack(model, header)))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
