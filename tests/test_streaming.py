"""Training images that stay where they are: the same batches as from a tensor, through worker processes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from netprune import memory, streaming
from netprune.data import Split, load_dataset
from netprune.evaluation import evaluate
from netprune.loader import normalise, steps_per_epoch, train_batches
from netprune.recipes import recipe
from netprune.scanner import ScanConfig, scan
from netprune.shares import Place
from netprune.streaming import streamed_batches
from netprune.training import train

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_workers(monkeypatch):
    monkeypatch.setattr(streaming, "WORKERS", 2)


@pytest.fixture
def streamed(tiny_dataset):
    return replace(tiny_dataset, train=replace(tiny_dataset.train, streamed=True))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_streamed_batches_without_padding_are_the_images_normalised_and_mirrored_as_told(streamed):
    order = torch.randperm(72, generator=generator(1))
    flips = torch.rand(72, generator=generator(2)) < 0.5
    found = list(streamed_batches(streamed, torch.split(order, 25), flips, 0, generator()))
    assert [len(labels) for _, labels in found] == [25, 25, 22]
    images = streamed.train.images[order]
    images = torch.where(flips[order].view(-1, 1, 1, 1), images.flip(3), images)
    torch.testing.assert_close(torch.cat([part for part, _ in found]), normalise(images, streamed))
    assert torch.equal(torch.cat([labels for _, labels in found]), streamed.train.labels[order])


def test_streamed_batches_crop_out_of_the_image_padded_by_reflection(streamed):
    dataset = replace(streamed, mean=(0.0,) * 3, std=(1.0,) * 3)
    none = torch.zeros(72, dtype=torch.bool)
    ((found, _),) = streamed_batches(dataset, [torch.arange(72)], none, 4, generator())
    pixels = (found * 255).round().to(torch.uint8).numpy()
    places = set()
    for image, given in zip(pixels, dataset.train.images.numpy(), strict=True):
        padded = np.pad(given, ((0, 0), (4, 4), (4, 4)), mode="reflect")
        corners = [(y, x) for y in range(9) for x in range(9)]
        (place,) = (at for at in corners if np.array_equal(padded[:, at[0] : at[0] + 32, at[1] : at[1] + 32], image))
        places.add(place)
    assert len(places) > 30  # 48 of the 81 are expected: each image has a place of its own


def test_train_batches_of_a_streamed_part_give_each_of_its_images_once(streamed):
    count = 40
    flat = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()
    whole = Split(flat, torch.arange(60), streamed=True)
    chosen = torch.randperm(60, generator=generator(3))[:count]
    part = whole.take(chosen.flip(0)).take(torch.arange(count).flip(0))  # rows of rows
    dataset = replace(streamed, train=part, mean=(0.0,) * 3, std=(1.0,) * 3)
    batches = list(train_batches(dataset, 16, generator()))
    assert len(batches) == steps_per_epoch(count, 16)
    seen = torch.cat([images[:, 0, 0, 0] * 255 for images, _ in batches]).round().long()
    assert torch.equal(seen, torch.cat([labels for _, labels in batches]))
    assert torch.equal(seen.sort().values, chosen.sort().values)


def test_train_batches_of_a_streamed_split_repeat_themselves_for_a_seed(streamed):
    def epoch(seed):
        return torch.cat([images for images, _ in train_batches(streamed, 36, generator(seed))])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))


def test_train_batches_of_a_streamed_split_are_shared_by_two_processes_and_cropped_apart(streamed):
    ramp = torch.arange(1024, dtype=torch.float32).div(4).to(torch.uint8).view(1, 1, 32, 32).expand(24, 3, 32, 32)
    dataset = replace(streamed, train=Split(ramp.contiguous(), torch.arange(24), streamed=True), flip=False)
    first, second = (list(train_batches(dataset, 12, generator(1), place=Place(rank, 2))) for rank in range(2))
    labels = torch.cat([part for batches in (first, second) for _, part in batches])
    assert torch.equal(labels.sort().values, torch.arange(24))
    # all images are the same, and so would be the crops of two processes that draw alike
    assert not any(torch.equal(one, other) for (one, _), (other, _) in zip(first, second, strict=True))


def test_train_on_a_streamed_split_learns(streamed, tiny_net):
    config = recipe("document", epochs=4, batch_size=24, max_lr=0.02)
    results = train(tiny_net, streamed, config)
    assert results[-1].train_loss < results[0].train_loss
    assert results[-1].val.accuracy > 0.6


@pytest.mark.parametrize("room", ["enough", "little", "hardly any"])
def test_load_dataset_folder_that_would_fill_the_memory_stays_on_disk(tmp_path, monkeypatch, room):
    for name, value in (("cat", 30), ("dog", 200)):
        for number in range(30):
            path = tmp_path / "in" / "train" / name / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((32, 32, 3), value + number, dtype=np.uint8)).save(path)
    in_memory = load_dataset(str(tmp_path / "in"), tmp_path / "cache")
    free = {"enough": 120, "little": 60, "hardly any": 11}[room] * 3072
    monkeypatch.setattr(memory, "free_memory", lambda _: free)
    found = load_dataset(str(tmp_path / "in"), tmp_path / "cache")
    assert found.train.streamed == (room != "enough")
    assert found.val.streamed == found.test.streamed == (room == "hardly any")
    assert found.val_digest() == in_memory.val_digest()
    for part in ("train", "val", "test"):
        ours, theirs = getattr(found, part), getattr(in_memory, part)
        assert torch.equal(ours.first(len(ours)).images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
    share = found.part(0.5, seed=1)
    assert share.train.streamed == found.train.streamed
    assert torch.equal(share.train.first(24).images, in_memory.part(0.5, seed=1).train.images)


def test_dataset_to_a_device_without_room_leaves_the_training_images_where_they_are(tiny_dataset, monkeypatch):
    needed = tiny_dataset.train.images.nbytes
    for free, streamed in ((2 * needed, False), (2 * needed - 2, True)):
        monkeypatch.setattr(memory, "free_memory", lambda _, free=free: free)
        moved = tiny_dataset.to(torch.device("meta"))
        assert moved.train.streamed == streamed
        assert moved.train.images.device.type == ("cpu" if streamed else "meta")
        assert moved.train.labels.device.type == moved.val.images.device.type == "meta"
    left = [2 * needed, 0, 0]  # the training split has its choice first, as `agreed` takes it
    monkeypatch.setattr(memory, "free_memory", lambda _: left.pop(0))
    assert not tiny_dataset.to(torch.device("meta")).train.streamed
    monkeypatch.setattr(memory, "free_memory", lambda _: 1)
    moved = tiny_dataset.to(torch.device("meta"))
    assert {split.images.device.type for split in (moved.train, moved.val, moved.test)} == {"cpu"}


def test_evaluate_on_a_streamed_split_is_the_same(tiny_dataset, tiny_net):
    order = torch.randperm(24, generator=generator())
    inverse = order.argsort()
    kept = Split(tiny_dataset.val.images[order], tiny_dataset.val.labels[order], streamed=True)
    streamed = replace(tiny_dataset, val=kept.take(inverse))
    assert evaluate(tiny_net, streamed.val, streamed) == evaluate(tiny_net, tiny_dataset.val, tiny_dataset)
    config = ScanConfig(sparsities=(0.5, 1.0), max_se=0, precision="fp32")
    assert scan(tiny_net, streamed, config).to_json() == scan(tiny_net, tiny_dataset, config).to_json()
    assert not tiny_dataset.to(CPU).train.streamed  # they are there already
