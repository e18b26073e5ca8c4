"""Training: the recipe, its randomness, its interruptions, and masks that hold."""

import copy
import io
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from netprune import training
from netprune.callbacks import Callbacks
from netprune.compute import Format
from netprune.data import Split
from netprune.distillation import distillation_loss
from netprune.errors import DivergedError, InputError
from netprune.evaluation import evaluate
from netprune.loader import train_batches
from netprune.masks import apply_masks, make_masks, measured_sparsity
from netprune.models import Architecture, build_model
from netprune.optimizers import linear_schedule
from netprune.recipes import TrainConfig, recipe
from netprune.training import Held, train
from netprune.weights import prunable_weights, weights_digest

SHORT = TrainConfig(epochs=3, batch_size=16, seed=5)


def trained(model, dataset, config=SHORT, **options):
    """A trained copy, as a digest."""
    model = copy.deepcopy(model)
    train(model, dataset, config, **options)
    return weights_digest(model)


def untimed(result):
    return replace(result, seconds=0, images_per_second=0)


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
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.02, weight_decay=0.01, fused=True)
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


def test_train_on_a_cpu_leaves_all_gpus_generators_alone(tiny_dataset, tiny_net, monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    train(tiny_net, tiny_dataset, TrainConfig(epochs=1, batch_size=36))
    assert seeded == []


def test_train_that_raises_leaves_the_global_generator_alone(tiny_dataset, tiny_net):
    before = torch.get_rng_state()

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_net, tiny_dataset, SHORT, callbacks=Callbacks(on_step=interrupt))
    assert torch.equal(torch.get_rng_state(), before)


def test_train_with_masks_holds_them_exactly_at_every_step(tiny_dataset, tiny_net):
    masks = make_masks(tiny_net, dict.fromkeys(prunable_weights(tiny_net), 0.7))
    apply_masks(tiny_net, masks)
    before = {name: weight.detach().clone() for name, weight in prunable_weights(tiny_net).items()}
    broken = []

    def look(done, _):
        weights = prunable_weights(tiny_net)
        broken.extend((done, name) for name, mask in masks.items() if weights[name].detach()[~mask].any())

    train(tiny_net, tiny_dataset, SHORT, held=Held(masks=masks), callbacks=Callbacks(on_step=look))
    assert not broken
    for name, weight in prunable_weights(tiny_net).items():
        assert not torch.equal(weight, before[name]), name
        assert torch.equal(weight.detach() != 0, masks[name]), name


def test_train_with_a_mask_on_one_layer_leaves_the_others_dense(tiny_dataset, tiny_net):
    masks = make_masks(tiny_net, {"conv2.0.weight": 0.5})
    train(tiny_net, tiny_dataset, SHORT, held=Held(masks=masks))
    zeros = {name: int((weight == 0).sum()) for name, weight in prunable_weights(tiny_net).items()}
    assert zeros == {name: 36 if name == "conv2.0.weight" else 0 for name in zeros}


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize(("masked", "optimizer"), [(False, "adam"), (True, "adam"), (True, "sgd"), (True, "muon")])
def test_train_resumed_from_a_file_equals_the_uninterrupted_training(tiny_dataset, tiny_net, stop, masked, optimizer):
    config = replace(SHORT, optimizer=optimizer)
    masks = make_masks(tiny_net, dict.fromkeys(prunable_weights(tiny_net), 0.5)) if masked else {}
    kept, whole = {}, []

    def keep(result, snapshot):
        whole.append(result)
        kept[result.epoch] = through_a_file(snapshot())

    uninterrupted = trained(tiny_net, tiny_dataset, config, held=Held(masks=masks), callbacks=Callbacks(on_epoch=keep))
    steps = []
    fresh = copy.deepcopy(tiny_net)
    with torch.no_grad():
        fresh.conv1[0].weight.zero_()  # everything comes from the snapshot
    results = train(
        fresh,
        tiny_dataset,
        config,
        held=Held(masks=masks),
        resume=kept[stop],
        callbacks=Callbacks(on_step=lambda done, total: steps.append((done, total))),
    )
    assert weights_digest(fresh) == uninterrupted
    assert [replace(r, seconds=0, images_per_second=0) for r in results] == [
        replace(r, seconds=0, images_per_second=0) for r in whole[stop:]
    ]
    assert steps == [(done, 15) for done in range(5 * stop + 1, 16)]


def test_train_snapshot_kept_in_memory_is_not_changed_by_the_epochs_after_it(tiny_dataset, tiny_net):
    kept = {}

    def keep(result, snapshot):
        kept[result.epoch] = snapshot()
        kept[f"digest {result.epoch}"] = weights_digest(tiny_net)

    train(tiny_net, tiny_dataset, SHORT, callbacks=Callbacks(on_epoch=keep))
    again = copy.deepcopy(tiny_net)
    again.load_state_dict(kept[1]["model"])
    assert weights_digest(again) == kept["digest 1"]


def test_train_resumed_from_its_last_epoch_has_nothing_left_to_do(tiny_dataset, tiny_net):
    kept = []
    told = Callbacks(on_epoch=lambda _, snapshot: kept.append(through_a_file(snapshot())))
    train(tiny_net, tiny_dataset, SHORT, callbacks=told)
    before = weights_digest(tiny_net)
    assert train(tiny_net, tiny_dataset, SHORT, resume=kept[-1]) == []
    assert weights_digest(tiny_net) == before


def test_train_results_say_what_each_epoch_gave(tiny_dataset, tiny_net):
    evaluations = []
    results = train(
        tiny_net,
        tiny_dataset,
        SHORT,
        callbacks=Callbacks(on_epoch=lambda *_: evaluations.append(evaluate(tiny_net, tiny_dataset.val, tiny_dataset))),
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
    told = Callbacks(on_step=lambda *step: steps.append(step))
    train(tiny_net, tiny_dataset, TrainConfig(epochs=2, batch_size=32), callbacks=told)
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


def test_train_with_a_padding_as_large_as_the_images_is_refused(tiny_dataset, tiny_net):
    parts = {name: getattr(tiny_dataset, name) for name in ("train", "val", "test")}
    small = {name: Split(part.images[:, :, :8, :8], part.labels) for name, part in parts.items()}
    message = "crop_padding is 8; for images of 8×8 it must be below 8"
    with pytest.raises(InputError, match=message):
        train(tiny_net, replace(tiny_dataset, **small), replace(SHORT, crop_padding=8))


def test_train_of_the_largest_seed_trains(tiny_dataset, tiny_net):
    assert len(train(tiny_net, tiny_dataset, TrainConfig(epochs=1, batch_size=36, seed=2**63 - 1))) == 1


@pytest.mark.parametrize("count", [0, 1])
def test_train_of_fewer_than_two_images_is_refused(tiny_dataset, tiny_net, count):
    few = replace(tiny_dataset, train=Split(tiny_dataset.train.images[:count], tiny_dataset.train.labels[:count]))
    with pytest.raises(InputError, match=f"{count} training images"):
        train(tiny_net, few, SHORT)


def test_train_of_two_images_takes_one_step_an_epoch(tiny_dataset, tiny_net):
    few = replace(tiny_dataset, train=Split(tiny_dataset.train.images[:2], tiny_dataset.train.labels[:2]))
    steps = []
    train(tiny_net, few, TrainConfig(epochs=1), callbacks=Callbacks(on_step=lambda *step: steps.append(step)))
    assert steps == [(1, 1)]


def test_train_with_an_average_gives_back_the_running_mean_of_the_weights(tiny_dataset, tiny_net):
    config = replace(SHORT, ema=0.9, epochs=2)
    plain, averaged, states = copy.deepcopy(tiny_net), tiny_net, []

    def keep(*_):
        states.append([p.detach().clone() for p in plain.parameters()])

    train(plain, tiny_dataset, replace(config, ema=0.0), callbacks=Callbacks(on_step=keep))
    results = train(averaged, tiny_dataset, config)
    mean = states[0]
    for state in states[1:]:
        mean = [0.9 * m + 0.1 * p for m, p in zip(mean, state, strict=True)]
    for parameter, expected in zip(averaged.parameters(), mean, strict=True):
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6)
    assert results[-1].val == evaluate(averaged, tiny_dataset.val, tiny_dataset)


@pytest.mark.parametrize("value", [-torch.inf, torch.finfo(torch.float32).min])
def test_train_with_an_average_keeps_what_is_infinite_as_it_is(tiny_dataset, tiny_net, value):
    tiny_net.register_buffer("mask", torch.full((2,), value))
    (result,) = train(tiny_net, tiny_dataset, replace(SHORT, ema=0.9, epochs=1))
    assert torch.equal(tiny_net.mask, torch.full((2,), value))
    assert math.isfinite(result.val.loss)


def test_train_with_an_average_and_masks_keeps_both_exact(tiny_dataset, tiny_net):
    masks = make_masks(tiny_net, dict.fromkeys(prunable_weights(tiny_net), 0.7))
    apply_masks(tiny_net, masks)
    train(tiny_net, tiny_dataset, replace(SHORT, ema=0.9), held=Held(masks=masks))
    for name, weight in prunable_weights(tiny_net).items():
        assert torch.equal(weight.detach() != 0, masks[name]), name


def test_train_without_its_teacher_is_refused(tiny_dataset, tiny_net):
    with pytest.raises(InputError, match=r"there is no teacher"):
        train(tiny_net, tiny_dataset, replace(SHORT, distillation=0.5))


def test_train_by_distillation_alone_follows_the_teacher_and_leaves_it_alone(tiny_dataset, tiny_net):
    teacher = copy.deepcopy(tiny_net)
    train(teacher, tiny_dataset, TrainConfig(epochs=8, batch_size=8))
    before = weights_digest(teacher), [m.training for m in teacher.modules()]
    shuffled = replace(tiny_dataset.train, labels=tiny_dataset.train.labels.roll(1))  # labels that teach nothing
    config = TrainConfig(epochs=8, batch_size=8, distillation=1.0)
    train(tiny_net, replace(tiny_dataset, train=shuffled), config, held=Held(teacher=teacher))
    assert evaluate(tiny_net, tiny_dataset.val, tiny_dataset).accuracy > 0.9
    assert (weights_digest(teacher), [m.training for m in teacher.modules()]) == before


def test_distillation_loss_is_the_divergence_of_the_softened_outputs():
    logits, wanted = torch.randn((2, 6, 5), generator=torch.Generator().manual_seed(0))
    ours, theirs = (F.softmax(value.double() / 4, dim=1) for value in (logits, wanted))
    expected = 16 * (theirs * (theirs / ours).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(logits, wanted).double(), expected, rtol=1e-5, atol=1e-7)
    assert distillation_loss(wanted, wanted).item() == pytest.approx(0, abs=1e-6)


def test_train_alternating_flips_show_each_image_one_way_and_then_the_other(tiny_dataset, tiny_net, monkeypatch):
    given = []

    def batches(dataset, batch_size, generator, *, padding, flips, place):
        given.append(flips)
        assert padding == 3
        return train_batches(dataset, batch_size, generator, padding=padding, flips=flips, place=place)

    monkeypatch.setattr(training, "train_batches", batches)
    train(tiny_net, tiny_dataset, replace(SHORT, alternating_flip=True, crop_padding=3))
    first, second, third = given
    assert 20 < int(first.sum()) < 52
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)
    given.clear()
    train(tiny_net, tiny_dataset, replace(SHORT, crop_padding=3))
    assert given == [None] * 3


@pytest.mark.parametrize("form", [Format(channels_last=True), Format(bf16=True, channels_last=True)])
def test_train_in_another_format_learns_as_well_and_ends_contiguous(tiny_dataset, tiny_net, form):
    results = train(tiny_net, tiny_dataset, TrainConfig(epochs=8, batch_size=8, format=form))
    assert results[-1].val.accuracy > 0.9
    assert all(p.is_contiguous() and p.dtype == torch.float32 for p in tiny_net.parameters())


def test_train_compiled_equals_plain_training_closely(tiny_dataset, tiny_net, monkeypatch):
    compiled = []

    def stand_in(model):  # compiling takes a minute; what is looked at is that the compiled network is what is run
        compiled.append(model)
        return lambda images: model(images)

    monkeypatch.setattr(torch, "compile", stand_in)
    plain = trained(tiny_net, tiny_dataset)
    assert trained(tiny_net, tiny_dataset, replace(SHORT, format=Format(compiled=True))) == plain
    assert len(compiled) == 1


def test_train_by_sgd_equals_the_recipe_written_out(tiny_dataset, tiny_net):
    changes = {"optimizer": "sgd", "max_lr": 0.01, "weight_decay": 0.1, "dropout": 0.3}
    # whole batches: in a last one of 12, normalisation makes more of rounding, which differs with the processor
    config = recipe("fast", epochs=2, batch_size=24, seed=3, **changes)
    reference = copy.deepcopy(tiny_net)
    reference.classifier[2].p = 0.3
    train(tiny_net, tiny_dataset, config)
    decayed = [p for p in reference.parameters() if p.ndim > 1]
    others = [p for p in reference.parameters() if p.ndim == 1]
    velocity = {p: torch.zeros_like(p) for p in reference.parameters()}
    flips = torch.rand(72, generator=torch.Generator().manual_seed(3)) < 0.5
    order, step = torch.Generator().manual_seed(3), 0
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for epoch in range(2):
            for images, labels in train_batches(tiny_dataset, 24, order, padding=2, flips=flips ^ bool(epoch)):
                reference.zero_grad()
                loss = F.cross_entropy(reference(images), labels, label_smoothing=config.label_smoothing)
                loss.backward()
                rate = config.max_lr * linear_schedule(step, 6, config.warm_up)
                with torch.no_grad():
                    for p in (*decayed, *others):
                        gradient = p.grad + (config.weight_decay * p if p.ndim > 1 else 0)
                        velocity[p] = gradient.clone() if step == 0 else 0.9 * velocity[p] + gradient
                        p -= rate * (gradient + 0.9 * velocity[p])
                step += 1
    for ours, theirs in zip(tiny_net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_train_gradual_without_rising_masks_is_refused(tiny_dataset, tiny_net):
    with pytest.raises(InputError, match=r"gradual is 0.5, and there are no rising masks"):
        train(tiny_net, tiny_dataset, replace(SHORT, gradual=0.5))


def rising_half(model, asked):
    """Rising masks of half of every weight tensor; `asked` gathers the shares that were due."""

    def rising(share):
        asked.append(share)
        return make_masks(model, dict.fromkeys(prunable_weights(model), 0.5 * share))

    return rising


def test_train_gradual_raises_the_sparsity_by_the_cubic_and_ends_exact(tiny_dataset, tiny_net):
    asked, zeros = [], []

    def on_step(*_):
        zeros.append(measured_sparsity(tiny_net)["res2.0.0.weight"])

    config = TrainConfig(epochs=4, batch_size=6, max_lr=0.02, gradual=0.5)  # 48 steps, 24 of them on the way
    held = Held(rising=rising_half(tiny_net, asked))
    train(tiny_net, tiny_dataset, config, held=held, callbacks=Callbacks(on_step=on_step))
    ways = [int(20 * n / 24) / 20 for n in range(25)]
    expected = [1 - (1 - way) ** 3 for way in dict.fromkeys(ways) if way]
    assert asked == pytest.approx(expected[:1] + expected if ways[1] == 0 else expected)
    assert zeros == sorted(zeros)
    assert zeros[0] < 0.2
    assert all(value == pytest.approx(0.5, abs=1e-3) for value in zeros[24:])
    assert {name: round(value, 2) for name, value in measured_sparsity(tiny_net).items()} == dict.fromkeys(
        prunable_weights(tiny_net), 0.5
    )


def test_train_gradual_with_an_average_ends_exact(tiny_dataset, tiny_net):
    train(tiny_net, tiny_dataset, replace(SHORT, ema=0.9, gradual=0.5), held=Held(rising=rising_half(tiny_net, [])))
    assert set(measured_sparsity(tiny_net).values()) == {0.5}


def test_train_gradual_resumed_equals_the_uninterrupted_training(tiny_dataset):
    config, snapshots = TrainConfig(epochs=4, batch_size=24, max_lr=0.02, gradual=0.8), []

    def trained(resume=None, on_epoch=None):
        model = build_model(Architecture(name="net10", num_classes=3, width=2), seed=0)
        held, told = Held(rising=rising_half(model, [])), Callbacks(on_epoch=on_epoch)
        train(model, tiny_dataset, config, held=held, callbacks=told, resume=resume)
        return weights_digest(model)

    whole = trained(on_epoch=lambda _, snapshot: snapshots.append(snapshot()))
    assert [trained(resume=snapshot) for snapshot in snapshots[:3]] == [whole] * 3


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_train_with_dropout_of_its_own_equals_a_network_that_has_it(tiny_dataset, tiny_net, probability):
    changed = copy.deepcopy(tiny_net)
    changed.classifier[2].p = probability
    assert trained(tiny_net, tiny_dataset, replace(SHORT, dropout=probability)) == trained(changed, tiny_dataset)
    assert trained(tiny_net, tiny_dataset, replace(SHORT, dropout=probability)) != trained(tiny_net, tiny_dataset)


def test_train_with_dropout_of_its_own_leaves_the_layers_with_theirs_even_if_it_raises(tiny_dataset, tiny_net):
    train(tiny_net, tiny_dataset, replace(SHORT, epochs=1, dropout=0.7))
    assert tiny_net.classifier[2].p == 0.2
    with pytest.raises(DivergedError):
        train(tiny_net, tiny_dataset, replace(SHORT, max_lr=1e18, dropout=0.7))
    assert tiny_net.classifier[2].p == 0.2
