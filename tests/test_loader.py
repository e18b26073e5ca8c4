"""Batches: nothing lost, nothing mixed up, every draw from the generator that is passed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from netprune.data import Split
from netprune.loader import crop, eval_batches, normalise, steps_per_epoch, train_batches


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(count, size=32, seed=0):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator(seed))


def flat_images(count):
    """Image i is i everywhere: crops and flips leave it as it is."""
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()


def with_train(dataset, images, labels=None, **changes):
    labels = torch.arange(len(images)) if labels is None else labels
    return replace(dataset, train=Split(images, labels), mean=(0.0,) * 3, std=(1.0,) * 3, **changes)


def test_normalise_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel(tiny_dataset):
    dataset = replace(tiny_dataset, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    images = random_images(4)
    expected = (images.numpy() / 255 - np.reshape([0.1, 0.2, 0.3], (3, 1, 1))) / np.reshape([0.4, 0.5, 0.6], (3, 1, 1))
    result = normalise(images, dataset)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("padding", [1, 4])
def test_crop_equals_a_loop_over_images(padding):
    images = random_images(20)
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, 20), generator=generator(5))
    result = crop(images, padding, tops, lefts)
    for i, (top, left) in enumerate(zip(tops.tolist(), lefts.tolist(), strict=True)):
        around = ((0, 0), (padding, padding), (padding, padding))
        padded = np.pad(images[i].numpy(), around, mode="reflect")
        assert np.array_equal(result[i], padded[:, top : top + 32, left : left + 32])
    assert result.dtype == torch.uint8


def epoch_of(tiny_dataset, images, **options):
    """All images of one epoch, as pixels, in the order of their labels."""
    dataset = with_train(tiny_dataset, images, flip=options.pop("flip", False))
    batches = list(train_batches(dataset, 50, generator(), **options))
    pixels, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return (pixels * 255).round().to(torch.uint8)[labels.argsort()]


def test_train_batches_take_every_offset_about_equally_often(tiny_dataset):
    result = epoch_of(tiny_dataset, random_images(1, size=8).expand(8100, -1, -1, -1)).flatten(1).numpy()
    _, counts = np.unique(result, axis=0, return_counts=True)
    assert len(counts) == 81
    assert 50 < counts.min() <= counts.max() < 150  # 100 ± 10 expected


def columns(count):
    """Images that are the same from top to bottom and rise from left to right: any crop tells which way round it is."""
    return torch.arange(32, dtype=torch.uint8).view(1, 1, 1, -1).expand(count, 3, 32, -1).contiguous()


def is_mirrored(images):
    return images[:, 0, 0, 10] > images[:, 0, 0, 20]


def test_train_batches_mirror_about_half_of_the_images(tiny_dataset):
    assert 440 < is_mirrored(epoch_of(tiny_dataset, columns(1000), flip=True)).sum() < 560


def test_train_batches_mirror_those_they_are_told_to(tiny_dataset):
    flips = torch.rand(200, generator=generator(3)) < 0.3
    assert torch.equal(is_mirrored(epoch_of(tiny_dataset, columns(200), flip=True, flips=flips)), flips)
    assert not is_mirrored(epoch_of(tiny_dataset, columns(200), flip=False, flips=flips)).any()


@pytest.mark.parametrize(("count", "batch_size", "dropped"), [(20, 5, 0), (23, 5, 0), (21, 5, 1), (3, 8, 0), (2, 2, 0)])
def test_train_batches_give_each_image_once_with_its_label(tiny_dataset, count, batch_size, dropped):
    labels = (torch.arange(count) * 7) % 3
    batches = list(train_batches(with_train(tiny_dataset, flat_images(count), labels), batch_size, generator()))
    assert len(batches) == steps_per_epoch(count, batch_size)
    sizes = [len(part) for _, part in batches]
    assert max(sizes) == min(batch_size, count)
    assert min(sizes) > 1
    seen = [round(255 * image[0, 0, 0].item()) for images, _ in batches for image in images]
    assert len(set(seen)) == len(seen) == count - dropped
    assert [int(label) for _, part in batches for label in part] == labels[seen].tolist()


def test_train_batches_follow_the_generator_alone(tiny_dataset):
    def epoch(seed, global_seed):
        torch.manual_seed(global_seed)
        return torch.cat([images for images, _ in train_batches(tiny_dataset, 16, generator(seed))])

    state = torch.get_rng_state()
    try:
        assert torch.equal(epoch(1, 10), epoch(1, 11))
        assert not torch.equal(epoch(1, 10), epoch(2, 10))
    finally:
        torch.set_rng_state(state)


def test_train_batches_second_epoch_is_in_another_order(tiny_dataset):
    dataset, source = with_train(tiny_dataset, flat_images(40)), generator()
    first, second = (torch.cat([labels for _, labels in train_batches(dataset, 8, source)]) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)


@pytest.mark.parametrize("flip", [False, True])
def test_train_batches_mirror_only_where_the_data_set_allows_it(tiny_dataset, flip):
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(50, 3, 32, 32).contiguous()
    images = torch.cat([i for i, _ in train_batches(with_train(tiny_dataset, ramp, flip=flip), 10, generator())])
    falling = images[..., :16].mean((1, 2, 3)) > images[..., 16:].mean((1, 2, 3))
    assert falling.any() == flip
    assert not falling.all()


@pytest.mark.parametrize("count", [1, 7, 8, 9])
def test_eval_batches_give_the_split_in_its_own_order_unaltered(tiny_dataset, count):
    split = Split(random_images(count), torch.arange(count))
    batches = list(eval_batches(split, tiny_dataset, 4))
    assert torch.equal(torch.cat([images for images, _ in batches]), normalise(split.images, tiny_dataset))
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)
    assert max(len(labels) for _, labels in batches) <= 4


@pytest.mark.parametrize("size", [8, 32, 64, 100])
def test_eval_batches_of_larger_images_take_no_more_memory(tiny_dataset, size):
    split = Split(torch.zeros(30, 3, size, size, dtype=torch.uint8), torch.arange(30))
    batches = [images for images, _ in eval_batches(split, tiny_dataset, 12)]
    assert sum(map(len, batches)) == 30
    assert len(batches[0]) == min(12, 12 * 32**2 // size**2)
    assert max(batch.numel() for batch in batches) <= 12 * 3 * 32**2
