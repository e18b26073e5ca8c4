"""Training: the recipe, its randomness, its interruptions, and masks that hold."""

import copy
import io
import itertools
import math
import time
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from netprune.data import Split
from netprune.errors import DivergedError, InputError
from netprune.evaluation import evaluate
from netprune.loader import train_batches
from netprune.masks import apply_masks, make_masks
from netprune.models import prunable_weights, weights_digest
from netprune.training import TrainConfig, seconds_per_epoch, train

SHORT = TrainConfig(epochs=3, batch_size=16, seed=5)


def trained(model, dataset, config=SHORT, **options):
    """A trained copy, as a digest."""
    model = copy.deepcopy(model)
    train(model, dataset, config, **options)
    return weights_digest(model)


def through_a_file(snapshot):
    file = io.BytesIO()
    torch.save(snapshot, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_train_on_separable_classes_lowers_the_loss_and_raises_the_accuracy(tiny_dataset, tiny_net):
    before = evaluate(tiny_net, tiny_dataset.val, tiny_dataset)
    results = train(tiny_net, tiny_dataset, TrainConfig(epochs=8, batch_size=8))
    assert results[-1].train_loss < 0.5 * results[0].train_loss
    assert results[-1].val.loss < 0.5 * before.loss
    assert results[-1].val.accuracy > 0.9 > before.accuracy


def test_train_equals_the_recipe_written_out(tiny_dataset, tiny_net):
    config = TrainConfig(epochs=2, batch_size=20, max_lr=0.02, weight_decay=0.01, grad_clip=0.05, seed=3)
    reference = copy.deepcopy(tiny_net)
    train(tiny_net, tiny_dataset, config)
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.02, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=8)
    order = torch.Generator().manual_seed(3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for _ in range(2):
            for images, labels in train_batches(tiny_dataset, 20, order):
                optimizer.zero_grad()
                F.cross_entropy(reference(images), labels).backward()
                for parameter in reference.parameters():
                    parameter.grad.clamp_(-0.05, 0.05)
                optimizer.step()
                scheduler.step()
    assert weights_digest(tiny_net) == weights_digest(reference)


def test_train_same_seed_gives_identical_weights_and_other_seed_others(tiny_dataset, tiny_net):
    first, second, other = (trained(tiny_net, tiny_dataset, replace(SHORT, seed=seed)) for seed in (1, 1, 2))
    assert first == second != other


def test_train_does_not_depend_on_the_global_generator_and_leaves_it_alone(tiny_dataset, tiny_net):
    outer = torch.get_rng_state()
    try:
        torch.manual_seed(1)
        first, after_first = trained(tiny_net, tiny_dataset), torch.get_rng_state()
        torch.manual_seed(1)
        assert torch.equal(torch.get_rng_state(), after_first)
        torch.manual_seed(2)
        assert trained(tiny_net, tiny_dataset) == first
    finally:
        torch.set_rng_state(outer)


def test_train_that_raises_leaves_the_global_generator_alone(tiny_dataset, tiny_net):
    before = torch.get_rng_state()

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_net, tiny_dataset, SHORT, on_step=interrupt)
    assert torch.equal(torch.get_rng_state(), before)


def test_train_with_masks_holds_them_exactly_at_every_step(tiny_dataset, tiny_net):
    masks = make_masks(tiny_net, dict.fromkeys(prunable_weights(tiny_net), 0.7))
    apply_masks(tiny_net, masks)
    before = {name: weight.detach().clone() for name, weight in prunable_weights(tiny_net).items()}
    broken = []

    def look(done, _):
        weights = prunable_weights(tiny_net)
        broken.extend((done, name) for name, mask in masks.items() if weights[name].detach()[~mask].any())

    train(tiny_net, tiny_dataset, SHORT, masks=masks, on_step=look)
    assert not broken
    for name, weight in prunable_weights(tiny_net).items():
        assert not torch.equal(weight, before[name]), name
        assert torch.equal(weight.detach() != 0, masks[name]), name


def test_train_with_a_mask_on_one_layer_leaves_the_others_dense(tiny_dataset, tiny_net):
    masks = make_masks(tiny_net, {"conv2.0.weight": 0.5})
    train(tiny_net, tiny_dataset, SHORT, masks=masks)
    zeros = {name: int((weight == 0).sum()) for name, weight in prunable_weights(tiny_net).items()}
    assert zeros == {name: 36 if name == "conv2.0.weight" else 0 for name in zeros}


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_train_resumed_from_a_file_equals_the_uninterrupted_training(tiny_dataset, tiny_net, stop, masked):
    masks = make_masks(tiny_net, dict.fromkeys(prunable_weights(tiny_net), 0.5)) if masked else None
    kept, whole = {}, []

    def keep(result, snapshot):
        whole.append(result)
        kept[result.epoch] = through_a_file(snapshot())

    uninterrupted = trained(tiny_net, tiny_dataset, masks=masks, on_epoch=keep)
    steps = []
    fresh = copy.deepcopy(tiny_net)
    with torch.no_grad():
        fresh.conv1[0].weight.zero_()  # everything comes from the snapshot
    results = train(
        fresh,
        tiny_dataset,
        SHORT,
        masks=masks,
        resume=kept[stop],
        on_step=lambda done, total: steps.append((done, total)),
    )
    assert weights_digest(fresh) == uninterrupted
    assert [replace(r, seconds=0) for r in results] == [replace(r, seconds=0) for r in whole[stop:]]
    assert steps == [(done, 15) for done in range(5 * stop + 1, 16)]


def test_train_snapshot_kept_in_memory_is_not_changed_by_the_epochs_after_it(tiny_dataset, tiny_net):
    kept = {}

    def keep(result, snapshot):
        kept[result.epoch] = snapshot()
        kept[f"digest {result.epoch}"] = weights_digest(tiny_net)

    train(tiny_net, tiny_dataset, SHORT, on_epoch=keep)
    again = copy.deepcopy(tiny_net)
    again.load_state_dict(kept[1]["model"])
    assert weights_digest(again) == kept["digest 1"]


def test_train_resumed_from_its_last_epoch_has_nothing_left_to_do(tiny_dataset, tiny_net):
    kept = []
    train(tiny_net, tiny_dataset, SHORT, on_epoch=lambda _, snapshot: kept.append(through_a_file(snapshot())))
    before = weights_digest(tiny_net)
    assert train(tiny_net, tiny_dataset, SHORT, resume=kept[-1]) == []
    assert weights_digest(tiny_net) == before


def test_train_results_say_what_each_epoch_gave(tiny_dataset, tiny_net):
    evaluations = []
    results = train(
        tiny_net,
        tiny_dataset,
        SHORT,
        on_epoch=lambda *_: evaluations.append(evaluate(tiny_net, tiny_dataset.val, tiny_dataset)),
    )
    assert [result.epoch for result in results] == [1, 2, 3]
    assert [result.val for result in results] == evaluations
    assert all(result.seconds > 0 and math.isfinite(result.train_loss) for result in results)
    assert tiny_net.training


def test_train_learning_rate_of_the_last_epoch_is_its_last_steps(tiny_dataset, tiny_net):
    results = train(tiny_net, tiny_dataset, SHORT)
    # one cycle ends 25 · 10,000 times below its peak
    assert results[-1].learning_rate == pytest.approx(0.01 / 25 / 1e4)


def test_train_steps_are_counted_to_the_end(tiny_dataset, tiny_net):
    steps = []
    train(tiny_net, tiny_dataset, TrainConfig(epochs=2, batch_size=32), on_step=lambda *step: steps.append(step))
    assert steps == [(done, 6) for done in range(1, 7)]


@pytest.mark.parametrize("max_lr", [1e20, 1e37])
@pytest.mark.parametrize("batch_size", [8, 72])
def test_train_with_a_rate_too_high_raises_diverged_error(tiny_dataset, tiny_net, max_lr, batch_size):
    config = TrainConfig(epochs=4, batch_size=batch_size, max_lr=max_lr)
    with pytest.raises(DivergedError, match="lower max_lr"):
        train(tiny_net, tiny_dataset, config)


def test_train_that_diverges_in_its_very_last_step_raises_diverged_error(tiny_dataset, tiny_net):
    with pytest.raises(DivergedError, match="lower max_lr"):
        train(tiny_net, tiny_dataset, TrainConfig(epochs=1, batch_size=72, max_lr=1e37))


@pytest.mark.parametrize("count", [0, 1])
def test_train_of_fewer_than_two_images_is_refused(tiny_dataset, tiny_net, count):
    few = replace(tiny_dataset, train=Split(tiny_dataset.train.images[:count], tiny_dataset.train.labels[:count]))
    with pytest.raises(InputError, match=f"{count} training images"):
        train(tiny_net, few, SHORT)


def test_train_of_two_images_takes_one_step_an_epoch(tiny_dataset, tiny_net):
    few = replace(tiny_dataset, train=Split(tiny_dataset.train.images[:2], tiny_dataset.train.labels[:2]))
    steps = []
    train(tiny_net, few, TrainConfig(epochs=1), on_step=lambda *step: steps.append(step))
    assert steps == [(1, 1)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", -1),
        ("batch_size", 1),
        ("max_lr", 0.0),
        ("max_lr", -0.1),
        ("max_lr", math.nan),
        ("max_lr", math.inf),
        ("weight_decay", -1e-9),
        ("weight_decay", math.nan),
        ("weight_decay", math.inf),
        ("grad_clip", 0.0),
        ("grad_clip", math.nan),
    ],
)
def test_train_config_bad_value_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=rf"{name} is {value}; it must be"):
        TrainConfig(**{name: value})


def test_train_config_defaults_are_the_documents():
    config = TrainConfig()
    assert (config.epochs, config.max_lr, config.weight_decay, config.grad_clip) == (20, 0.01, 1e-4, 0.1)


def test_seconds_per_epoch_leaves_the_network_and_the_generator_alone(tiny_dataset, tiny_net):
    tiny_net.res1.eval()
    digest, modes, state = weights_digest(tiny_net), [m.training for m in tiny_net.modules()], torch.get_rng_state()
    assert 0 < seconds_per_epoch(tiny_net, tiny_dataset) < 60
    assert weights_digest(tiny_net) == digest
    assert [m.training for m in tiny_net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in tiny_net.parameters())


@pytest.mark.parametrize(
    ("tick", "expected"),
    [(1.0, 72 / 16 * 1.0), (0.1, 0.1)],
    ids=["slow: known from 16 images", "fast: known from all 72"],
)
def test_seconds_per_epoch_is_a_batchs_time_for_each_of_the_images(tiny_dataset, tiny_net, monkeypatch, tick, expected):
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: tick * next(clock))
    assert seconds_per_epoch(tiny_net, tiny_dataset) == pytest.approx(expected)
