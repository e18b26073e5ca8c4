"""State dicts: what may be pruned, reading files, and weights that load whole or not at all."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from netprune.errors import InputError
from netprune.models import Architecture, build_model
from netprune.weights import load_weights, names_of_weights, prunable_weights, read_state_dict, weights_digest


def net10(num_classes=3, width=2, seed=0):
    return build_model(Architecture(name="net10", num_classes=num_classes, width=width), seed=seed)


class Code:
    """A pickle of this makes a file when it is loaded by one who trusts it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_prunable_weights_leave_normalisation_and_biases_out():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 2)), nn.Embedding(3, 3))
    assert list(prunable_weights(model)) == ["0.weight", "2.0.weight"]
    assert prunable_weights(model)["0.weight"] is model[0].weight
    assert list(prunable_weights(nn.Linear(2, 2))) == ["weight"]


def test_prunable_weights_of_tied_layers_are_one_by_the_first_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model.append(model[2])
    assert list(prunable_weights(model)) == ["0.weight", "2.weight"]
    assert names_of_weights(model) == {"0.weight": ["0.weight", "1.weight"], "2.weight": ["2.weight", "3.weight"]}


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.conv1[0].weight.data.view(-1)[3].neg_(),
        lambda model: model.conv1[1].running_mean.fill_(-0.0),  # equal in value to 0.0, not in bits
        lambda model: model.res1[0][1].num_batches_tracked.add_(1),
    ],
    ids=["weight", "negative zero", "buffer"],
)
def test_weights_digest_any_bit_changed_gives_another(change):
    model = net10()
    before = weights_digest(model)
    change(model)
    assert weights_digest(model) != before


def test_load_weights_that_fit_are_loaded_bit_for_bit():
    source, model = net10(seed=1), net10(seed=2)
    assert load_weights(model, source.state_dict()) == []
    assert weights_digest(model) == weights_digest(source)


def test_load_weights_other_head_is_refused_with_layer_shapes_and_option():
    model = net10(num_classes=3)
    before = weights_digest(model)
    with pytest.raises(InputError) as refused:
        load_weights(model, net10(num_classes=10, seed=1).state_dict())
    for part in ("classifier.4.weight", "(10, 8)", "(3, 8)", "--adapt-head"):
        assert part in str(refused.value)
    assert weights_digest(model) == before


def test_load_weights_adapt_head_loads_the_rest_and_keeps_the_head():
    source, model = net10(num_classes=10, seed=1).state_dict(), net10(num_classes=3, seed=2)
    own = copy.deepcopy(model.state_dict())
    kept = load_weights(model, source, adapt_head=True)
    assert sorted(kept) == ["classifier.4.bias", "classifier.4.weight"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, own[name] if name in kept else source[name]), name


def test_load_weights_adapt_head_with_a_head_that_fits_loads_it_too():
    source, model = net10(seed=1), net10(seed=2)
    assert load_weights(model, source.state_dict(), adapt_head=True) == []
    assert weights_digest(model) == weights_digest(source)


@pytest.mark.parametrize("adapt_head", [False, True])
@pytest.mark.parametrize("num_classes", [3, 10])
def test_load_weights_other_width_is_refused_and_changes_nothing(adapt_head, num_classes):
    model = net10(width=2)
    before = weights_digest(model)
    with pytest.raises(InputError) as refused:
        load_weights(model, net10(num_classes=num_classes, width=4).state_dict(), adapt_head=adapt_head)
    for part in ("conv1.0.weight", "(4, 3, 3, 3)", "(2, 3, 3, 3)", "width"):
        assert part in str(refused.value)
    assert weights_digest(model) == before


def test_load_weights_one_late_shape_wrong_changes_nothing():
    model, state = net10(), net10(seed=1).state_dict()
    state["res2.1.1.bias"] = torch.zeros(15)
    before = weights_digest(model)
    with pytest.raises(InputError, match=r"res2\.1\.1\.bias"):
        load_weights(model, state)
    assert weights_digest(model) == before


@pytest.mark.parametrize("adapt_head", [False, True])
def test_load_weights_missing_and_unknown_names_are_named(adapt_head):
    model, state = net10(), net10(seed=1).state_dict()
    state["fc.weight"] = state.pop("conv3.0.bias")
    before = weights_digest(model)
    with pytest.raises(InputError) as refused:
        load_weights(model, state, adapt_head=adapt_head)
    assert "1 missing (conv3.0.bias)" in str(refused.value)
    assert "1 unknown (fc.weight)" in str(refused.value)
    assert weights_digest(model) == before


def test_load_weights_into_a_network_without_prunable_weights_loads_or_names_the_shapes():
    source, model = nn.Conv1d(3, 4, 1), nn.Conv1d(3, 4, 1)
    assert load_weights(model, source.state_dict()) == []
    assert weights_digest(model) == weights_digest(source)
    with pytest.raises(InputError, match=r"weight is \(4, 3, 1\) in the file and \(5, 3, 1\) in the network"):
        load_weights(nn.Conv1d(3, 5, 1), source.state_dict(), adapt_head=True)


def test_load_weights_of_two_tensors_into_a_network_where_they_are_one_is_refused_and_changes_nothing():
    tied, free = (nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)) for _ in range(2))
    tied[1].weight = tied[0].weight
    before = weights_digest(tied)
    with pytest.raises(InputError, match=r"0\.weight and 1\.weight are one tensor in the network and two different"):
        load_weights(tied, free.state_dict())
    assert weights_digest(tied) == before
    free[1].load_state_dict(free[0].state_dict())
    load_weights(tied, free.state_dict())
    assert weights_digest(tied) == weights_digest(free)


def test_load_weights_of_another_network_names_no_tensor_that_moves_the_terminals_cursor():
    hostile = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2), "\x1b[2Jx\n": torch.zeros(1)}
    with pytest.raises(InputError, match="1 unknown") as refused:
        load_weights(nn.Linear(2, 2), hostile)
    assert str(refused.value).isprintable()


def test_weights_digest_of_a_network_with_extra_state_or_without_values_is_refused_with_the_mend():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"seen": 3}

    for network in (Extra(2, 2), nn.LazyLinear(2), nn.Linear(2, 2, device="meta")):
        with pytest.raises(InputError, match="without extra state, on a device, and give it a batch first"):
            weights_digest(network)


def test_load_weights_with_a_value_that_is_no_number_is_refused_naming_the_tensor_and_changes_nothing():
    model, state = net10(), net10(seed=1).state_dict()
    before = weights_digest(model)
    state["res2.1.1.bias"][3] = float("nan")
    with pytest.raises(InputError, match=r"res2\.1\.1\.bias has a value in the file that is no number"):
        load_weights(model, state)
    assert weights_digest(model) == before


def test_load_weights_takes_the_infinities_of_a_mask():
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.zeros(2, 2))
    assert load_weights(model, {**model.state_dict(), "mask": torch.full((2, 2), float("-inf"))}) == []
    assert model.mask.isinf().all()


class Extra(nn.Linear):
    """A module with state that is no tensor."""

    def get_extra_state(self):
        """A number of its own."""
        return {"a": 1}

    def set_extra_state(self, state):
        """It has no use for it."""


def test_load_weights_into_a_network_with_state_that_is_no_tensor_is_refused():
    with pytest.raises(InputError, match="_extra_state of the network has no values"):
        load_weights(Extra(2, 2), {**nn.Linear(2, 2).state_dict(), "_extra_state": torch.zeros(1)})


@pytest.mark.parametrize("old_format", [False, True])
def test_read_state_dict_reads_what_torch_saved(tmp_path, old_format):
    state = net10().state_dict()
    torch.save(state, tmp_path / "net.pt", _use_new_zipfile_serialization=not old_format)
    loaded = read_state_dict(tmp_path / "net.pt")
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_read_state_dict_absent_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.pt does not exist"):
        read_state_dict(tmp_path / "gone.pt")


def test_read_state_dict_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path)):
        read_state_dict(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 64,
        b"model: net10\n",
        b"<html>not found</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"PK\x03\x04",
        b"\x89PNG\r\n\x1a\n",
        b"NETPRUNE\x01",
        # these reach the unpickler's own opcodes
        b".",
        b"torch",
        b"\x80\x02.",
        b"h" * 20,
    ],
)
def test_read_state_dict_garbage_is_refused(tmp_path, content):
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"net\.pt"):
        read_state_dict(tmp_path / "net.pt")


@pytest.mark.parametrize("old_format", [False, True])
def test_read_state_dict_cut_short_is_refused(tmp_path, old_format):
    whole = io.BytesIO()
    torch.save({"a": torch.arange(4.0)}, whole, _use_new_zipfile_serialization=not old_format)
    data = whole.getvalue()
    for length in range(0, len(data), 7):
        (tmp_path / "net.pt").write_bytes(data[:length])
        with pytest.raises(InputError, match=r"net\.pt"):
            read_state_dict(tmp_path / "net.pt")


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_read_state_dict_pickle_with_code_is_refused_and_not_run(tmp_path, save):
    save({"a": torch.zeros(2), "b": Code(str(tmp_path / "ran"))}, tmp_path / "net.pt")
    with pytest.raises(InputError, match="not a readable state dict"):
        read_state_dict(tmp_path / "net.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(3),
        [torch.zeros(3)],
        {},
        {"epoch": 3},
        {"state_dict": {"a": torch.zeros(2)}},
        {"a": torch.ones(1), "b": 1},
        {"a": torch.eye(2).to_sparse()},
        {"a": torch.zeros(2, device="meta")},
    ],
    ids=["tensor", "list", "empty", "number", "nested", "mixed", "sparse", "meta"],
)
def test_read_state_dict_of_something_else_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "net.pt")
    with pytest.raises(InputError, match="plain state dict"):
        read_state_dict(tmp_path / "net.pt")
