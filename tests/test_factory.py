"""Networks of the user's own class: found by the name that the user gives, tried before any work, and by no other."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from netprune.errors import InputError
from netprune.factory import builder, find_factory
from netprune.packing import pack, unpack
from netprune.weights import weights_digest

README = (Path(__file__).parent.parent / "README.md").read_text()
REFUSED = """
import itertools
import random

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

def raises(classes): raise ValueError("no such\\nthing")
def number(classes): return classes
def other_outputs(classes): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, classes + 1))
def other_size(classes): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes))
def no_weights(classes): return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.AvgPool1d(3))
def normed(classes): return nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(3 * 64, classes)))
def complex_numbers(classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, classes))
    net.register_buffer("turn", torch.zeros(2, dtype=torch.complex64))
    return net

def expanded(classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, classes))
    net.register_buffer("grid", torch.zeros(1, 4).expand(3, 4))
    return net

class Auxiliary(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(3 * 64, classes)

    def forward(self, images):
        logits = self.fc(images.flatten(1))
        return (logits, logits) if self.training else logits

def auxiliary(classes): return Auxiliary(classes)

class Alone(nn.Linear):
    def __deepcopy__(self, memo): raise RuntimeError("there is only one")

def alone(classes): return nn.Sequential(nn.Flatten(), Alone(3 * 64, classes))

class Features(nn.Module):
    def __init__(self, classes, keep):
        super().__init__()
        keep(self, torch.randn(3 * 64, 8))
        self.fc = nn.Linear(8, classes)

    def forward(self, images):
        return self.fc(images.flatten(1) @ self.random)

def attribute(classes): return Features(classes, lambda net, made: setattr(net, "random", made))
def unsaved(classes): return Features(classes, lambda net, made: net.register_buffer("random", made, persistent=False))
def saved(classes): return Features(classes, lambda net, made: net.register_buffer("random", made))
def fixed(classes): return Features(classes, lambda net, made: setattr(net, "random", torch.ones_like(made)))

def hidden(classes):
    net = attribute(classes)
    nn.init.zeros_(net.fc.weight)
    return net

class Moving(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc, self.moving_mean = nn.Linear(3 * 64, classes), torch.zeros(1, 3 * 64)

    def forward(self, images):
        x = images.flatten(1)
        if self.training:
            self.moving_mean = 0.9 * self.moving_mean + 0.1 * x.mean(0, keepdim=True).detach()
        return self.fc(x - self.moving_mean)

def moving(classes): return Moving(classes)

class Squeezing(nn.Sequential):
    def forward(self, images): return super().forward(images).squeeze()

def squeezing(classes): return Squeezing(nn.Conv2d(3, classes, 1), nn.AdaptiveAvgPool2d(1))

class InPlace(nn.Sequential):
    def forward(self, images):
        x = torch.sigmoid(self[0](images.flatten(1)))
        x *= 2
        return x

def in_place(classes): return InPlace(nn.Linear(3 * 64, classes))
def frozen(classes): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, classes)).requires_grad_(False)

class OnZerosOnly(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc = nn.Linear(3 * 64, classes)

    def forward(self, images):
        if self.training and images.any(): raise ValueError("too bright")
        return self.fc(images.flatten(1))

def on_zeros_only(classes): return OnZerosOnly(classes)

class Noisy(nn.Module):
    def __init__(self, classes, noise):
        super().__init__()
        self.fc, self.noise = nn.Linear(3 * 64, classes), noise

    def forward(self, images):
        return self.fc(images.flatten(1)) + self.noise()

def noisy(classes): return Noisy(classes, lambda: torch.rand(1))
def own_noise(classes): return Noisy(classes, lambda: random.random())

def never_the_same(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 9 + next(calls)), nn.LazyLinear(classes))

constant = 3
calls = itertools.count()
"""


@pytest.fixture
def own_header(tiny_header):
    """Of a network of the user's own class on images of 16×16."""
    return replace(tiny_header, architecture=None, image_size=16)


@pytest.mark.parametrize("name", ["mynet", "nets.small.mynet"])
def test_factory_of_a_module_in_the_working_directory_builds_its_network(own_module, name):
    network = find_factory(f"{own_module(name=name)}:network").build(5, image_size=20)
    assert type(network).__name__ == "Own"
    assert network(torch.zeros(3, 3, 20, 20)).shape == (3, 5)


def test_factory_same_seed_builds_the_same_network_and_leaves_the_generator_alone(own_module):
    factory = find_factory(f"{own_module()}:network")
    before = torch.get_rng_state()
    digests = [weights_digest(factory.build(3, seed=seed)) for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_factory_leaves_batch_statistics_and_mode_of_a_new_network_alone(own_module):
    network = find_factory(f"{own_module()}:network").build(3)
    assert network.training
    assert network.features[1].num_batches_tracked == 0
    assert torch.equal(network.features[1].running_var, torch.ones(6))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:network", r"there is no module nowhere: put nowhere\.py into .*, or install it"),
        ("mynet.deeper:network", r"there is no module mynet\.deeper"),
        ("mynet:gone", "mynet has no function gone: it has .*Own, network"),
        ("mynet:nn", "mynet has no function nn"),
        ("mynet:", "module:function, such as mynet:network"),
        (":network", "module:function"),
        ("my net:network", "module:function"),
        ("mynet:network:2", "module:function"),
    ],
)
def test_find_factory_of_a_name_that_is_none_says_the_mend(own_module, name, message):
    own_module()
    with pytest.raises(InputError, match=message):
        find_factory(name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nothing_of_that_name", "mynet cannot be imported: ModuleNotFoundError: No module named 'nothing_of"),
        ("def network(:", "mynet cannot be imported: SyntaxError"),
        ("raise OSError('disk')", "mynet cannot be imported: OSError: disk"),
        ("import sys; sys.exit(3)", "mynet cannot be imported: SystemExit: 3"),
    ],
)
def test_find_factory_of_a_module_that_fails_is_one_sentence(own_module, source, message):
    own_module(source)
    with pytest.raises(InputError, match=message) as refused:
        find_factory("mynet:network")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", "failed when it was called with 4, the number of classes: ValueError: no such"),
        ("number", r"gave a int: it has to return a torch\.nn\.Module"),
        ("other_outputs", r"gives \(2, 5\) for 2 images and 4 classes; it has to give a tensor of \(2, 4\)"),
        ("other_size", r"fails on images of 8×8 pixels \(RuntimeError: .*take another image_size"),
        ("no_weights", r"has no Conv2d and no Linear layer, so there is nothing to prune"),
        ("normed", "is computed from other tensors"),
        ("complex_numbers", r"turn cannot be packed"),
        ("auxiliary", r"gives a tuple for 2 images .* in train mode too"),
        ("expanded", r"cannot load its own state_dict.*\"grid\".*single memory location.*\.clone\(\)"),
        ("attribute", r"tensors that are not in their state_dict.*self\.register_buffer"),
        ("unsaved", r"tensors that are not in their state_dict.*without persistent=False"),
        ("hidden", r"tensors that are not in their state_dict.*self\.register_buffer"),
        ("moving", r"tensors that are not in their state_dict.*self\.register_buffer"),
        ("on_zeros_only", r"fails on random images in train mode \(ValueError: too bright\)"),
        ("never_the_same", r"does not build one and the same network each time"),
        ("squeezing", r"gives \(4,\) for 1 image and 4 classes; .* \(1, 4\).*\.squeeze"),
        ("in_place", r"cannot be trained, its gradients fail \(RuntimeError: .*inplace operation.*x = x \* 2"),
        ("frozen", r"cannot be trained, its gradients fail .*frozen"),
        ("alone", r"cannot be copied by copy\.deepcopy.*there is only one"),
    ],
)
def test_factory_of_a_network_that_cannot_be_pruned_is_refused_in_one_sentence(own_module, function, message):
    factory = find_factory(f"{own_module(REFUSED)}:{function}")
    with pytest.raises(InputError, match=message) as refused:
        factory.build(4, image_size=8)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("function", ["saved", "fixed", "noisy", "own_noise"])
def test_factory_of_a_network_whose_state_dict_is_whole_or_whose_outputs_cannot_tell_builds_it(own_module, function):
    network = find_factory(f"{own_module(REFUSED)}:{function}").build(4, image_size=8)
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 4)


def test_builder_gives_a_packed_file_its_network_back_bit_for_bit(own_module, own_header):
    network = find_factory(f"{own_module()}:network").build(3, 16, seed=4)
    found = unpack(pack(network, own_header), builder("mynet:network"))
    assert weights_digest(found.model) == weights_digest(network)
    assert found.header == own_header


ELSEWHERE = """
from torch import nn

class Elsewhere(nn.Sequential):
    def cpu(self):
        self.moved = True
        return super().cpu()

def network(classes): return Elsewhere(nn.Flatten(), nn.Linear(3 * 256, classes))
"""
"""As if it were on a GPU: it says when it is brought from there."""


def test_builder_of_a_network_on_another_device_gives_it_on_the_cpu(own_module, own_header):
    own_module(ELSEWHERE)
    network = find_factory("mynet:network").build(3, 16)
    assert not hasattr(network, "moved")
    assert unpack(pack(network, own_header), builder("mynet:network")).model.moved


def test_builder_without_a_name_imports_nothing_and_says_what_to_name(own_module, own_header):
    network = find_factory(f"{own_module()}:network").build(3, 16)
    own_module("raise SystemExit('imported')", "recorded")
    for model in ("", "net10", "vgg16"):
        with pytest.raises(InputError, match=r"with model, such as recorded:network \(so its run says\)"):
            unpack(pack(network, own_header), builder(model, "recorded:network"))
    with pytest.raises(InputError, match="with model, such as mynet:network"):
        unpack(pack(network, own_header), builder("", "net10-w2"))


def test_builder_of_another_network_than_the_files_is_refused(own_module, own_header):
    network = find_factory(f"{own_module()}:network").build(3, 16)
    other = "from torch import nn\ndef network(classes): return nn.Sequential(nn.Flatten(), nn.Linear(768, classes))"
    own_module(other, "another")
    with pytest.raises(InputError, match="of another network"):
        unpack(pack(network, own_header), builder("another:network"))


def test_builder_is_not_asked_for_a_file_that_names_its_architecture(tiny_net, tiny_header):
    def refuse(_):
        pytest.fail("the file says how to build it")

    assert weights_digest(unpack(pack(tiny_net, tiny_header), refuse).model) == weights_digest(tiny_net)


def test_readmes_own_network_is_one_that_is_taken(own_module):
    (source,) = [block for block in README.split("```python\n")[1:] if block.startswith("# mynet.py")]
    network = find_factory(f"{own_module(source.split('```')[0])}:network").build(3, image_size=64)
    assert sum(p.numel() for p in network.parameters()) > 11_000_000


def test_readmes_library_example_is_true(own_module, capsys, monkeypatch):
    (example,) = [block for block in README.split("```python\n")[1:] if "netprune.prune_candidate" in block]
    own_module()
    monkeypatch.syspath_prepend(Path.cwd())  # where a script of the user's would stand
    exec(compile(example.split("```")[0], "README.md", "exec"), {})
    assert re.fullmatch(r"[\d.]+% with [\d,]+ of [\d,]+ bytes\n", capsys.readouterr().out)
    assert Path("pruned.netprune").stat().st_size > 0
