"""3×3 convolutions by Winograd's algorithm, for processors whose library has none: fewer products for the same sums.

A tile of m×m outputs is had from (m + 2)² products a pair of channels in place of 9 m²: 2.25 times fewer at m = 2, 4
times at m = 4, for transforms whose cost does not grow with the other side's channels. So it pays for wide layers
alone (README, results log). The transforms are Lavin & Gray 2016 (arXiv:1509.09308); sums are in fp32, and results
differ from the direct ones by a few parts in a million.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

WIDE = 128
"""Channels, of input and output, from which on forward and backward together take as long or less, narrower ones
longer (README, results log)."""
SMALL = 4
"""Sides up to this, in pixels, are cut into tiles of 2×2: a tile of 4×4 has too few images to multiply at a time."""
ROWS = 512
"""Tiles that are transformed and multiplied together: many enough to multiply well, few enough to stay in the cache."""

_INPUT = {
    2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    4: [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
}
_KERNEL = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}
_OUTPUT = {
    2: [[1, 1, 1, 0], [0, 1, -1, -1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}


class WinogradConvolutions(TorchFunctionMode):
    """Inside this context `conv2d` is `winograd_conv2d` wherever `pays` says so."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.conv2d and not kwargs and pays(*args):
            return winograd_conv2d(*args[:3])
        return func(*args, **(kwargs or {}))


def pays(
    images: Tensor,
    weight: Tensor,
    _bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Whether `conv2d` with these arguments is one of wide 3×3 kernels, in fp32 on a CPU, that leaves the size alone.

    By shape and not by time, so that the same network does the same sums each time.
    """
    ones = all(value in (1, (1, 1), [1, 1]) for value in (stride, padding, dilation))
    return (
        weight.shape[2:] == (3, 3)
        and ones
        and groups == 1
        and min(weight.shape[:2]) >= WIDE
        and images.dim() == 4
        and images.device.type == "cpu"
        and images.dtype == weight.dtype == torch.float32
    )


def winograd_conv2d(images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`conv2d(images, weight, bias, padding=1)`, with gradients of the first order.

    Args:
        images: float `(N, C, H, W)`.
        weight: `(C', C, 3, 3)`.
        bias: `(C',)`.

    Returns:
        `(N, C', H, W)`, channels_last.
    """
    side = 2 if max(images.shape[2:]) <= SMALL else 4
    found: Tensor = _Convolution.apply(images, weight, side)
    return found if bias is None else found + bias[:, None, None]


class _Convolution(torch.autograd.Function):
    """Chunk by chunk, and the transforms of the images again on the way back: they are larger than the images."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, side: int) -> Tensor:
        """`(N, C, H, W)` and `(C', C, 3, 3)` → `(N, C', H, W)`, channels_last; `side` of a tile's outputs."""
        tiling = _Tiling(images, weight, side)
        kernels = tiling.kernels(weight)
        found = images.new_empty((images.shape[0], *images.shape[2:], weight.shape[0]))
        for chunk in tiling.chunks:
            products = torch.bmm(tiling.inputs(images[chunk]), kernels)
            tiling.join(tiling.to_output @ products.flatten(1), out=found[chunk])
        ctx.save_for_backward(images, weight, kernels)
        ctx.tiling = tiling
        return found.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor, None]:
        """The output's gradient → the images', if it is wanted, and the weight's."""
        images, weight, kernels = ctx.saved_tensors
        tiling, downwards = ctx.tiling, ctx.needs_input_grad[0]
        kernel_slopes = torch.zeros_like(kernels)
        found = images.new_empty((images.shape[0], *images.shape[2:], images.shape[1])) if downwards else None
        for chunk in tiling.chunks:
            product_slopes = tiling.products(tiling.to_output.T @ tiling.split(slope[chunk]), weight.shape[0])
            kernel_slopes.baddbmm_(tiling.inputs(images[chunk]).transpose(1, 2), product_slopes)
            if found is not None:
                input_slopes = torch.bmm(product_slopes, kernels.transpose(1, 2)).flatten(1)
                tiling.add(tiling.to_input.T @ input_slopes, out=found[chunk])
        kernel = (tiling.to_kernel.T @ kernel_slopes.flatten(1)).view(3, 3, weight.shape[1], weight.shape[0])
        return None if found is None else found.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), None


class _Tiling:
    """How images are cut: tiles of side + 2 pixels that overlap by two, of side × side outputs that do not.

    Transformed values are `(P, tiles · channels)`, P the (side + 2)² products; of a transform's two dimensions the
    Kronecker product is one matrix.
    """

    def __init__(self, images: Tensor, weight: Tensor, side: int) -> None:
        self.side, (self.height, self.width) = side, images.shape[2:]
        self.rows, self.columns = -(-self.height // side), -(-self.width // side)
        self.to_input, self.to_kernel, self.to_output = (
            torch.kron(matrix, matrix)
            for matrix in (weight.new_tensor(table[side]) for table in (_INPUT, _KERNEL, _OUTPUT))
        )
        step = max(1, ROWS // (self.rows * self.columns))
        self.chunks = [slice(start, start + step) for start in range(0, images.shape[0], step)]

    def products(self, transformed: Tensor, channels: int) -> Tensor:
        """`(P, tiles, channels)`."""
        return transformed.view((self.side + 2) ** 2, -1, channels)

    def kernels(self, weight: Tensor) -> Tensor:
        """Transformed, `(P, C, C')`."""
        outputs, inputs = weight.shape[:2]
        transformed = self.to_kernel @ weight.permute(2, 3, 1, 0).reshape(9, -1)
        return transformed.view((self.side + 2) ** 2, inputs, outputs)

    def inputs(self, images: Tensor) -> Tensor:
        """Overlapping tiles, with a border of zeros, transformed: `(P, tiles, C)`."""
        padded = self._padded(images)
        n, y, x, c = padded.stride()
        shape = (self.side + 2, self.side + 2, len(images), self.rows, self.columns, images.shape[1])
        tiles = padded.as_strided(shape, (y, x, n, y * self.side, x * self.side, c))
        return self.products(self.to_input @ tiles.reshape((self.side + 2) ** 2, -1), images.shape[1])

    def _padded(self, images: Tensor) -> Tensor:
        shape = (len(images), self.rows * self.side + 2, self.columns * self.side + 2, images.shape[1])
        padded = images.new_zeros(shape)
        padded[:, 1 : self.height + 1, 1 : self.width + 1] = images.permute(0, 2, 3, 1)
        return padded

    def add(self, tiles: Tensor, *, out: Tensor) -> None:
        """Overlapping tiles added up into `out`, `(N, H, W, C)`: the transposed of cutting them."""
        side, m, channels = self.side + 2, self.side, out.shape[3]
        padded = tiles.new_zeros((len(out), self.rows * m + 2, self.columns * m + 2, channels))
        parts = tiles.view(side, side, len(out), self.rows, self.columns, channels)
        for y in range(side):
            for x in range(side):
                padded[:, y : y + self.rows * m : m, x : x + self.columns * m : m] += parts[y, x]
        out.copy_(padded[:, 1 : self.height + 1, 1 : self.width + 1])

    def split(self, images: Tensor) -> Tensor:
        """`(N, C', H, W)` in tiles that do not overlap, `(side², tiles · C')`."""
        n, m = len(images), self.side
        whole = F.pad(images, (0, self.columns * m - self.width, 0, self.rows * m - self.height))
        tiles = whole.permute(0, 2, 3, 1).reshape(n, self.rows, m, self.columns, m, images.shape[1])
        return tiles.permute(2, 4, 0, 1, 3, 5).reshape(m * m, -1)

    def join(self, tiles: Tensor, *, out: Tensor) -> None:
        """The other way, into `out`, `(N, H, W, C')`; what hangs over the image is left out."""
        n, m = len(out), self.side
        parts = tiles.view(m, m, n, self.rows, self.columns, out.shape[3]).permute(2, 3, 0, 4, 1, 5)
        if (self.rows * m, self.columns * m) == (self.height, self.width):
            out.view(n, self.rows, m, self.columns, m, out.shape[3]).copy_(parts)
        else:
            whole = parts.reshape(n, self.rows * m, self.columns * m, out.shape[3])
            out.copy_(whole[:, : self.height, : self.width])
