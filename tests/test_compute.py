"""Ways of running forward passes: what each does to a tensor, and that the fastest is chosen."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from netprune import compute
from netprune.compute import (
    BATCH_SIZES,
    LONGEST_SECONDS,
    PROBE_IMAGES,
    Compute,
    Format,
    choose_compute,
    choose_format,
    compiled_if_faster,
    seconds_per_image,
    training_seconds,
)
from netprune.weights import weights_digest

CPU = torch.device("cpu")
LABELS = torch.arange(64) % 3


@pytest.fixture
def net():
    """Three layers in eval mode, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()


def images(count=512):
    return torch.randn((count, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def timed(monkeypatch, seconds):
    """Replace the stopwatch by a function of the way; gives the list of the ways that were timed."""
    asked = []

    def fake(model, shown, way):
        asked.append(way)
        return seconds(way)

    monkeypatch.setattr(compute, "seconds_per_image", fake)
    return asked


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        (Compute(), "fp32, contiguous, batches of 500"),
        (Compute(bf16=True, channels_last=True, batch_size=64), "bf16, channels_last, batches of 64"),
        (Compute(bf16=True, batch_size=1), "bf16, contiguous, batches of 1"),
    ],
)
def test_compute_says_what_it_is(way, expected):
    assert str(way) == expected


@pytest.mark.parametrize("channels_last", [False, True])
def test_compute_layout_changes_the_strides_and_no_value(channels_last):
    way = Compute(channels_last=channels_last)
    for given in (images(2), images(2).to(memory_format=torch.channels_last)):
        found = way.layout(given)
        assert torch.equal(found, given)
        assert found.is_contiguous(memory_format=way.memory_format)
        assert found.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("bf16", [False, True])
def test_compute_active_sets_the_number_format_inside_only(net, bf16):
    batch = images(2)
    with Compute(bf16=bf16).active(CPU):
        found = net(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        expected = net(batch)
    assert found.dtype == (torch.bfloat16 if bf16 else torch.float32)
    assert torch.equal(found, expected)
    assert net(batch).dtype == torch.float32


def test_compute_active_is_left_after_an_error():
    with pytest.raises(KeyboardInterrupt), Compute(bf16=True).active(CPU):
        raise KeyboardInterrupt
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_autocast_cache_enabled()


@pytest.mark.parametrize("bf16", [False, True])
def test_compute_active_sees_a_weight_that_changes_between_two_passes(net, bf16):
    way, batch = Compute(bf16=bf16), images(3)
    weight = net[0].weight
    assert weight.requires_grad  # autocast caches these alone
    changed = copy.deepcopy(net)
    with torch.no_grad():
        changed[0].weight.zero_()
    with way.active(CPU):
        expected = changed(batch)
    with way.active(CPU):
        first = net(batch)
        with torch.no_grad():
            weight.zero_()
        second = net(batch)
    assert not torch.equal(first, second)
    assert torch.equal(second, expected)


FORMS = list(itertools.product((False, True), (False, True)))


@pytest.mark.parametrize(("bf16", "channels_last"), FORMS)
@pytest.mark.parametrize("best_size", BATCH_SIZES)
def test_choose_compute_takes_the_fastest_form_and_batch_size(monkeypatch, net, bf16, channels_last, best_size):
    def seconds(way):
        right = (way.bf16, way.channels_last) == (bf16, channels_last)
        return (1e-5 if right else 3e-5) * (1 if way.batch_size == best_size else 1.5)

    asked = timed(monkeypatch, seconds)
    found = choose_compute(net, images())
    assert found == Compute(bf16=bf16, channels_last=channels_last, batch_size=best_size)
    assert found in asked
    assert {(way.bf16, way.channels_last) for way in asked} == set(FORMS)


def test_choose_compute_takes_winograds_convolutions_where_they_are_fastest(monkeypatch, net):
    asked = timed(monkeypatch, lambda way: 1e-5 if way.winograd else 2e-5)
    assert choose_compute(net, images()).winograd
    asked.clear()
    assert not choose_compute(net.to("meta"), images().to("meta")).winograd
    assert asked
    assert not any(way.winograd for way in asked)  # a GPU's library has its own


@pytest.mark.parametrize("channels_last", [False, True])
def test_choose_compute_without_bf16_never_tries_it(monkeypatch, net, channels_last):
    asked = timed(monkeypatch, lambda way: 1e-7 if way.bf16 else 1e-5 * (1 + (way.channels_last != channels_last)))
    found = choose_compute(net, images(), bf16=False)
    assert not found.bf16
    assert found.channels_last == channels_last
    assert not any(way.bf16 for way in asked)


@pytest.mark.parametrize(("rough", "probe"), [(1e-6, PROBE_IMAGES), (0.05, 10), (0.2, 4), (30.0, 4)])
def test_choose_compute_of_a_slow_network_takes_small_probes(monkeypatch, net, rough, probe):
    asked = timed(monkeypatch, lambda _: rough)
    choose_compute(net, images())
    assert asked[0] == Compute(batch_size=4)
    assert {way.batch_size for way in asked[1:6]} == {probe}
    # one batch of any later try is as quick as half a second, but for the smallest probe
    assert all(way.batch_size * rough < LONGEST_SECONDS for way in asked[6:])
    assert [way.batch_size for way in asked[6:]] == [size for size in BATCH_SIZES if size * rough < LONGEST_SECONDS]


@pytest.mark.parametrize("count", [5, 40, 300])
def test_choose_compute_tries_no_batch_larger_than_the_images(monkeypatch, net, count):
    asked = timed(monkeypatch, lambda way: 1e-5 / way.batch_size)
    found = choose_compute(net, images(count))
    sizes = [size for size in BATCH_SIZES if size <= count]
    assert [way.batch_size for way in asked[6:]] == sizes
    assert found.batch_size in (*sizes, min(count, PROBE_IMAGES))
    assert all(way.batch_size <= count for way in asked)


def test_choose_compute_for_real_leaves_the_values_and_gives_a_candidate(net):
    digest, shown = weights_digest(net), images()
    before = shown.clone()
    found = choose_compute(net, shown)
    assert found.batch_size in (*BATCH_SIZES, *range(4, PROBE_IMAGES + 1))
    assert weights_digest(net) == digest
    assert torch.equal(shown, before)
    assert not net.training
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(("bf16", "channels_last"), FORMS)
def test_seconds_per_image_runs_the_way_it_is_given(net, bf16, channels_last):
    way = Compute(bf16=bf16, channels_last=channels_last, batch_size=4)
    seen = []
    net[0].register_forward_hook(lambda module, args, output: seen.append((args[0], module.weight, output)))
    assert 0 < seconds_per_image(net, images(), way) < 10
    assert 2 <= len(seen) <= 6
    for batch, weight, output in seen:
        assert batch.shape == (4, 3, 8, 8)
        assert batch.is_contiguous(memory_format=way.memory_format)
        assert weight.is_contiguous(memory_format=way.memory_format)
        assert output.dtype == (torch.bfloat16 if bf16 else torch.float32)
        assert not output.requires_grad


def test_seconds_per_image_is_a_batchs_least_time_by_image(monkeypatch, net):
    ticks = iter([0.0, 9.0, 10.0, 10.004, 20.0, 20.002])
    monkeypatch.setattr(compute.time, "perf_counter", lambda: next(ticks))
    # the first pass warms up: it takes long, and does not count; so does it end the timing
    assert seconds_per_image(net, images(), Compute(batch_size=4)) == pytest.approx(0.001)
    ticks = iter([0.0, 0.03, 1.0, 1.012, 2.0, 2.004, 3.0, 3.009])
    monkeypatch.setattr(compute.time, "perf_counter", lambda: next(ticks))
    assert seconds_per_image(net, images(), Compute(batch_size=2)) == pytest.approx(0.002)


def trained(monkeypatch, seconds):
    """Replace the stopwatch of training by a function of the format; gives the list of what was timed."""
    asked = []

    def fake(model, shown, labels, form):
        asked.append((form, len(shown)))
        found = seconds(form)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(compute, "training_seconds", fake)
    return asked


@pytest.mark.parametrize(("bf16", "channels_last"), FORMS)
def test_choose_format_takes_the_fastest(monkeypatch, net, bf16, channels_last):
    best = Format(bf16=bf16, channels_last=channels_last)
    trained(monkeypatch, lambda form: 1e-3 if form == best else 2e-3)
    assert choose_format(net, images(64), LABELS) == (best, 1e-3)


def test_choose_format_takes_winograds_convolutions_where_they_are_fastest(monkeypatch, net):
    asked = trained(monkeypatch, lambda form: 1e-3 if form.winograd else 2e-3)
    assert choose_format(net, images(64), LABELS) == (Format(winograd=True, channels_last=True), 1e-3)
    asked.clear()
    choose_format(net.to("meta"), images(64).to("meta"), LABELS)
    assert asked
    assert not any(form.winograd for form, _ in asked)  # a GPU's library has its own


def test_choose_format_stays_plain_for_less_than_it_is_worth(monkeypatch, net):
    trained(monkeypatch, lambda form: 1.0 if form == Format() else 0.96)
    assert choose_format(net, images(64), LABELS)[0] == Format()
    trained(monkeypatch, lambda form: 1.0 if form == Format() else 0.94)
    assert choose_format(net, images(64), LABELS)[0] != Format()


@pytest.mark.parametrize(("rough", "probe"), [(1e-6, 64), (0.05, 10), (30.0, 4)])
def test_choose_format_of_a_slow_network_takes_small_probes(monkeypatch, net, rough, probe):
    asked = trained(monkeypatch, lambda _: rough)
    choose_format(net, images(64), LABELS)
    assert asked[:2] == [(Format(), 4), (Format(bf16=True, channels_last=True), 4)]
    assert {count for _, count in asked[2:]} == {probe}


def test_choose_format_does_not_wait_for_bf16_that_is_only_emulated(monkeypatch, net):
    asked = trained(monkeypatch, lambda form: 5e-3 if form.bf16 else 1e-3)
    assert choose_format(net, images(64), LABELS)[0] == Format()
    assert [count for form, count in asked if form.bf16] == [4]


@pytest.mark.parametrize(
    ("compiled", "expected"), [(0.5, True), (0.94, True), (0.96, False), (2.0, False), (RuntimeError("no gcc"), False)]
)
def test_compiled_if_faster_compiles_only_where_that_pays(monkeypatch, net, compiled, expected):
    trained(monkeypatch, lambda form: compiled if form.compiled else 1.0)
    plain = Format(channels_last=True)
    assert compiled_if_faster(net, images(8), LABELS[:8], plain) == replace(plain, compiled=expected)
    ours = replace(plain, winograd=True)
    assert compiled_if_faster(net, images(8), LABELS[:8], ours) == (replace(plain, compiled=True) if expected else ours)


@pytest.mark.parametrize(("bf16", "channels_last"), FORMS)
def test_training_seconds_runs_a_copy_the_way_it_is_given(net, bf16, channels_last):
    form, digest, state = Format(bf16=bf16, channels_last=channels_last), weights_digest(net), torch.get_rng_state()
    seen = []
    net[0].register_forward_hook(lambda module, args, output: seen.append((module, args[0], output)))
    assert 0 < training_seconds(net, images(8), LABELS[:8], form) < 10
    assert seen
    for module, batch, output in seen:
        assert module is not net[0]
        assert module.training
        assert batch.is_contiguous(memory_format=form.memory_format)
        assert output.dtype == (torch.bfloat16 if bf16 else torch.float32)
        assert output.requires_grad
    assert weights_digest(net) == digest
    assert not net.training
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)
