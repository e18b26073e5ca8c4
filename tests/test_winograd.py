"""Convolutions by Winograd's algorithm, beside torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netprune import winograd
from netprune.compute import Format
from netprune.winograd import WIDE, WinogradConvolutions, pays, winograd_conv2d

SHAPES = [(1, 1, 1, 1), (3, 5, 2, 2), (4, 3, 4, 4), (2, 6, 3, 5), (3, 2, 7, 9), (4, 4, 8, 8), (2, 3, 17, 6)]


def drawn(inputs, outputs, height, width, *, count=3, dtype=torch.float64):
    """Images, kernels and biases that want gradients, the same every time."""
    made = torch.Generator().manual_seed(inputs * 100 + outputs)
    shapes = [(count, inputs, height, width), (outputs, inputs, 3, 3), (outputs,)]
    return [torch.randn(shape, generator=made, dtype=dtype).requires_grad_() for shape in shapes]


def with_gradients(convolution, given):
    """Outputs, and the gradients of the sum of their squares."""
    found = convolution(*given)
    return [found.detach(), *torch.autograd.grad((found**2).sum(), given)]


def direct(images, weight, bias=None):
    return F.conv2d(images, weight, bias, padding=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_winograd_conv2d_gives_torchs_outputs_and_gradients(shape):
    given = drawn(*shape)
    for found, expected in zip(with_gradients(winograd_conv2d, given), with_gradients(direct, given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 3, 4, 7])
def test_winograd_conv2d_in_chunks_of_any_size_gives_the_same(monkeypatch, rows):
    monkeypatch.setattr(winograd, "ROWS", rows)
    given = drawn(2, 3, 5, 6, count=5)
    for found, expected in zip(with_gradients(winograd_conv2d, given), with_gradients(direct, given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("side", [4, 8])
def test_winograd_conv2d_in_fp32_is_right_to_a_hundred_thousandth(side):
    given = drawn(64, 32, side, side, dtype=torch.float32)
    exact = with_gradients(direct, [value.detach().double().requires_grad_() for value in given])
    for found, expected in zip(with_gradients(winograd_conv2d, given), exact, strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_winograd_conv2d_of_any_layout_gives_channels_last(memory_format):
    images, weight, _ = (value.detach() for value in drawn(4, 6, 8, 8))
    found = winograd_conv2d(images.contiguous(memory_format=memory_format), weight)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, direct(images, weight), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("needed", [True, False])
def test_winograd_conv2d_works_out_the_images_gradient_only_where_it_is_needed(monkeypatch, needed):
    added, add = [], winograd._Tiling.add
    monkeypatch.setattr(winograd._Tiling, "add", lambda *args, **out: added.append(1) or add(*args, **out))
    images, weight, bias = drawn(2, 3, 4, 4)
    (winograd_conv2d(images if needed else images.detach(), weight, bias) ** 2).sum().backward()
    assert bool(added) == needed
    assert weight.grad is not None


def test_winograd_conv2d_twice_gives_the_same_bits():
    given = drawn(WIDE, WIDE, 8, 8, dtype=torch.float32)
    for first, second in zip(*(with_gradients(winograd_conv2d, given) for _ in range(2)), strict=True):
        assert torch.equal(first, second)


def test_winograd_conv2d_of_second_order_is_refused():
    images, weight, _ = drawn(2, 3, 4, 4)
    (slope,) = torch.autograd.grad((winograd_conv2d(images, weight) ** 2).sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def layer(inputs=WIDE, outputs=WIDE, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": 1} | options)


@pytest.mark.parametrize(
    ("convolution", "expected"),
    [
        (layer(), True),
        (layer(bias=False), True),
        (layer(outputs=2 * WIDE), True),
        (layer(inputs=WIDE - 1), False),
        (layer(outputs=WIDE - 1), False),
        (layer(stride=2), False),
        (layer(padding=0), False),
        (layer(padding=(1, 2)), False),
        (layer(padding="same"), False),
        (layer(padding=2, dilation=2), False),
        (layer(groups=2), False),
        (layer(2 * WIDE, 2 * WIDE, groups=2), False),
        (layer(kernel=1, padding=0), False),
        (layer(kernel=5, padding=2), False),
        (layer(dtype=torch.float64), False),
        (layer(padding_mode="reflect"), False),
    ],
    ids=str,
)
def test_winograd_convolutions_takes_over_what_pays_and_nothing_else(monkeypatch, convolution, expected):
    taken = []
    monkeypatch.setattr(winograd, "winograd_conv2d", lambda *args: taken.append(args) or winograd_conv2d(*args))
    images = torch.randn((2, convolution.in_channels, 4, 4), dtype=convolution.weight.dtype)
    outside = convolution(images)
    assert taken == []
    with WinogradConvolutions():
        inside = convolution(images)
    assert bool(taken) == expected
    torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-4)
    assert torch.equal(convolution(images), outside)


def test_pays_only_on_a_cpu_for_a_batch_of_images():
    images, weight = torch.empty((2, WIDE, 4, 4)), torch.empty((WIDE, WIDE, 3, 3))
    assert pays(images, weight, None, 1, (1, 1))
    assert not pays(images[0], weight, None, 1, 1)
    assert not pays(images.to("meta"), weight.to("meta"), None, 1, 1)
    assert not pays(images.bfloat16(), weight, None, 1, 1)


def test_format_with_winograd_uses_it_inside_only(monkeypatch):
    seen = []
    monkeypatch.setattr(winograd, "winograd_conv2d", lambda *args: seen.append(args) or winograd_conv2d(*args))
    network, images = nn.Sequential(layer(), nn.ReLU(), layer()), torch.randn((2, WIDE, 4, 4))
    for form, expected in ((Format(), 0), (Format(winograd=True), 2), (Format(channels_last=True), 2)):
        with form.active(torch.device("cpu")):
            network(images)
        assert len(seen) == expected
    with pytest.raises(KeyboardInterrupt), Format(winograd=True).active(torch.device("cpu")):
        raise KeyboardInterrupt
    network(images)
    assert len(seen) == 2
