"""When passes are launched, recorded and replayed, with stand-ins for what needs a GPU; test_cuda.py has the GPU's."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from netprune import recording
from netprune.errors import InputError
from netprune.models import Architecture, build_model
from netprune.recording import RECORDED_AFTER, Recorded, recordable
from sweeps.stages.data import find_device

ONE, OTHER = (4, 3, 2, 2), (3, 3, 2, 2)


class Watched:
    """What is done with passes, in order: launched or recorded ones with the number that their images hold."""

    def __init__(self):
        self.log, self.capturing, self.replayed = [], False, []

    def passes(self, images, labels):
        self.log.append("recorded" if self.capturing else f"launched {images[0, 0, 0, 0]:g} {labels[0]}")
        return torch.zeros(())

    def clear(self):
        self.log.append("cleared")

    def graph(self, owner):
        """A stand-in for a CUDA graph: replaying notes what the recorded inputs hold."""

        def replay():
            self.log.append(f"replayed {owner().images[0, 0, 0, 0]:g} {owner().labels[0]}")

        return SimpleNamespace(replay=replay)

    @contextmanager
    def capture(self, *_, **__):
        self.capturing = True
        yield
        self.capturing = False


@pytest.fixture
def watched(monkeypatch):
    """The passes' watcher, and a `Recorded` of them."""
    watch = Watched()
    stream = SimpleNamespace(wait_stream=lambda _: None)
    made = {}
    for name, stand_in in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: nullcontext(),
        "CUDAGraph": lambda: watch.graph(lambda: made["recorded"]),
        "graph": watch.capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    made["recorded"] = Recorded(watch.passes, watch.clear)
    return watch, made["recorded"]


def batch(number, shape=ONE):
    return torch.full(shape, float(number)), torch.full(shape[:1], number)


def test_recorded_launches_once_records_once_and_replays_with_each_calls_values(watched):
    watch, recorded = watched
    for number in range(4):
        recorded(*batch(number))
    assert watch.log == [
        "cleared",
        "launched 0 0",
        "cleared",
        "recorded",
        "replayed 1 1",
        "replayed 2 2",
        "replayed 3 3",
    ]
    assert RECORDED_AFTER == 2


def test_recorded_of_another_size_launches_it_and_begins_anew(watched):
    watch, recorded = watched
    for number, shape in enumerate((ONE, ONE, OTHER, ONE, ONE, ONE)):
        recorded(*batch(number, shape))
    steps = [step for step in watch.log if step != "cleared"]
    assert steps == [
        "launched 0 0",
        "recorded",
        "replayed 1 1",
        "launched 2 2",
        "launched 3 3",
        "recorded",
        "replayed 4 4",
        "replayed 5 5",
    ]


def test_recorded_that_forgets_begins_anew(watched):
    watch, recorded = watched
    for number in range(3):
        recorded(*batch(number))
    recorded.forget()
    recorded(*batch(3))
    assert watch.log[-2:] == ["cleared", "launched 3 3"]


def test_recorded_leaves_the_images_that_it_is_given_alone(watched):
    _, recorded = watched
    images, labels = batch(1)
    for number in range(4):
        recorded(images, labels)
        recorded(*batch(number + 5))
    assert torch.equal(images, batch(1)[0])


class Own(nn.Module):
    def forward(self, images):
        return images


def test_networks_are_recordable_if_all_their_layers_are_known_and_nobody_listens():
    net = build_model(Architecture(name="net10", num_classes=3, width=2))
    assert not any(recording._decides(module) for module in net.modules())
    assert recording._decides(Own())
    assert any(recording._decides(module) for module in nn.Sequential(net, Own()).modules())
    for listen in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        handle = getattr(net.conv1, listen)(lambda *_: None)
        assert any(recording._decides(module) for module in net.modules())
        handle.remove()
    assert not any(recording._decides(module) for module in net.modules())


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm])
def test_networks_that_average_statistics_by_a_count_are_not_recordable(kind):
    assert recording._decides(kind(4, momentum=None))  # 1 / count is computed on the host
    assert not recording._decides(kind(4))


def test_networks_on_a_cpu_are_not_recordable(tiny_net):
    assert not recordable(tiny_net)


@pytest.mark.parametrize(("index", "expected"), [(1, True), (0, False)])
def test_networks_on_another_gpu_than_the_current_one_are_not_recordable(monkeypatch, index, expected):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    parameters = [SimpleNamespace(device=torch.device("cuda", index))]
    network = SimpleNamespace(parameters=lambda: parameters, modules=list)
    assert recordable(network) == expected


@pytest.mark.parametrize(("name", "current"), [("cuda:1", [torch.device("cuda:1")]), ("cuda", []), ("cpu", [])])
def test_find_device_of_a_numbered_gpu_makes_it_the_current_one(monkeypatch, name, current):
    made_current = []
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # every device is here
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)
    assert find_device(name) == torch.device(name)
    assert made_current == current


def test_find_device_of_a_kind_that_has_no_float64_or_no_values_is_refused():
    with pytest.raises(InputError, match="device 'meta' is none that netprune runs on: take auto, cpu or cuda"):
        find_device("meta")
