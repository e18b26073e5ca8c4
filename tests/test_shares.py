"""Shares: together they are the batch, and weighted as they are they have its mean."""

from contextlib import contextmanager

import pytest
import torch

from netprune.errors import InputError
from netprune.loader import batch_sizes, steps_per_epoch, train_batches
from netprune.shares import ALONE, Place, seed_generators

SIZES, CPU = (2, 3, 8), torch.device("cpu")


def places(size):
    return [Place(rank, size, rank) for rank in range(size)]


def epochs(dataset, batch_size, size, **options):
    """One epoch's batches in each of `size` processes."""
    return [
        list(train_batches(dataset, batch_size, torch.Generator().manual_seed(1), place=place, **options))
        for place in places(size)
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [16, 17, 23, 64])
def test_shares_of_a_batch_are_its_images_once_and_differ_by_one_at_most(size, count):
    batch = torch.randperm(count)
    shares = [place.share(batch) for place in places(size)]
    assert torch.equal(torch.cat(shares), batch)
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= 2


@pytest.mark.parametrize("size", SIZES)
def test_share_of_a_batch_of_fewer_than_two_images_a_process_is_the_whole_of_it(size):
    for count in range(2, 2 * size):
        batch = torch.arange(count)
        assert all(torch.equal(place.share(batch), batch) for place in places(size))


@pytest.mark.parametrize("size", [1, *SIZES])
@pytest.mark.parametrize("count", [2, 3, 5, 15, 16, 17, 23, 64])
def test_weight_makes_the_mean_over_processes_the_mean_over_images(size, count):
    values = torch.rand(count, dtype=torch.float64)
    means = [place.weight(count) * place.share(values).mean() for place in places(size)]
    torch.testing.assert_close(torch.stack(means).mean(), values.mean())


def test_place_alone_takes_whole_batches_as_they_are():
    batch = torch.arange(5)
    generator, state = torch.Generator(), torch.get_rng_state()
    assert torch.equal(ALONE.share(batch), batch)
    assert [ALONE.weight(count) for count in range(2, 300)] == [1.0] * 298
    assert ALONE.own(generator) is generator
    assert ALONE.own_device("cuda:1") == "cuda:1"
    ALONE.reseed(3, 4, CPU)
    ALONE.check_batch(2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("size", "least"), [(2, 4), (8, 16)])
def test_check_batch_too_small_to_be_shared_is_refused_with_the_least(size, least):
    Place(0, size).check_batch(least)
    with pytest.raises(InputError, match=rf"{size} processes; it must be at least {least}"):
        Place(0, size).check_batch(least - 1)


@pytest.mark.parametrize("batch_size", [16, 23, 72, 100])
@pytest.mark.parametrize("size", [2, 3])
def test_train_batches_of_several_processes_are_together_those_of_one(tiny_dataset, batch_size, size):
    (whole,) = epochs(tiny_dataset, batch_size, 1)
    shared = epochs(tiny_dataset, batch_size, size)
    assert {len(batches) for batches in shared} == {len(whole)} == {steps_per_epoch(72, batch_size)}
    for step, (images, labels) in enumerate(whole):
        assert len(labels) == batch_sizes(72, batch_size)[step]
        if len(labels) < 2 * size:
            shares = [batches[step] for batches in shared[:1]]
        else:
            shares = [batches[step] for batches in shared]
        assert torch.equal(torch.cat([part for part, _ in shares]), images)
        assert torch.equal(torch.cat([part for _, part in shares]), labels)


def test_own_generators_differ_and_leave_the_common_one_in_the_same_state():
    common = [torch.Generator().manual_seed(6) for _ in range(3)]
    own = [place.own(generator) for place, generator in zip(places(3), common, strict=True)]
    assert len({generator.initial_seed() for generator in own}) == 3
    assert all(torch.equal(generator.get_state(), common[0].get_state()) for generator in common)


def test_reseed_gives_every_process_and_epoch_draws_of_its_own():
    with torch.random.fork_rng():
        drawn = []
        for place in places(3):
            for epoch in range(3):
                place.reseed(0, epoch, CPU)
                drawn.append(torch.rand(()).item())
    assert len(set(drawn)) == 9


def test_seed_generators_of_a_gpu_are_the_global_one_and_its_own_and_no_other_gpus(monkeypatch):
    seeded, current = [], [0]

    @contextmanager
    def device(chosen):
        current.append(chosen.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: seeded.append((current[-1], seed)))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("all GPUs are seeded"))
    with torch.random.fork_rng(devices=[]):
        for name in ("cpu", "cuda:1"):
            seed_generators(7, torch.device(name))
            assert torch.initial_seed() == 7
    assert seeded == [(1, 7)]


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_own_device_is_the_gpu_of_the_rank_on_its_machine(monkeypatch, asked):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [Place(rank, 4, rank % 2).own_device(asked) for rank in range(4)] == ["cuda:0", "cuda:1"] * 2
    assert Place(1, 4, 1).own_device("cpu") == "cpu"
    with pytest.raises(InputError, match=r"more processes than its 2 GPUs"):
        Place(2, 4, 2).own_device(asked)


def test_own_device_without_gpus_is_as_asked_and_one_for_all_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Place(1, 2, 1).own_device("auto") == "auto"
    with pytest.raises(InputError, match=r"device is cuda:1, and there are 2 processes: take auto, cuda or cpu"):
        Place(1, 2, 1).own_device("cuda:1")
