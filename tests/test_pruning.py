"""One candidate from start to end: what is reported is what the file does."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from netprune.callbacks import Callbacks
from netprune.candidate import RECALIBRATED, Subject, prune_candidate
from netprune.errors import DivergedError, InputError
from netprune.evaluation import evaluate
from netprune.gradients import loss_gradients
from netprune.masks import apply_masks, make_masks, measured_sparsity
from netprune.packing import unpack
from netprune.precision import fit_to_device
from netprune.pruning import PruneConfig, finetuning, prune_and_finetune
from netprune.quantise import SIGNIFICANT_BITS, Values, round_significand
from netprune.recalibration import recalibrate
from netprune.recipes import FINETUNE, TrainConfig
from netprune.rounding import quantise_and_train
from netprune.rules import document, shapes_of
from netprune.saliency import SALIENCIES
from netprune.training import Held, train
from netprune.weights import prunable_weights, weights_digest

RECIPE = TrainConfig(epochs=2, batch_size=16, seed=4)
ONE_SHOT, FINETUNED = PruneConfig(), PruneConfig(finetune=RECIPE)
GRADUAL = PruneConfig(finetune=replace(RECIPE, gradual=0.5))


@pytest.mark.parametrize("config", [ONE_SHOT, FINETUNED, GRADUAL], ids=["one shot", "finetuned", "gradual"])
def test_prune_candidate_with_the_documents_allocation_prunes_exact_counts(tiny_net, tiny_dataset, tiny_header, config):
    allocation = document(shapes_of(tiny_net))
    result, data = prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), allocation, config)
    shipped = prunable_weights(unpack(data).model)
    zeros = {name: int((w.detach().numpy() == 0).sum()) for name, w in shipped.items()}
    expected = {name: round((0.9 if i else 0.6) * w.numel()) for i, (name, w) in enumerate(shipped.items())}
    assert zeros == expected
    total = sum(w.numel() for w in shipped.values())
    assert result.asked == allocation
    assert result.measured == pytest.approx({name: count / shipped[name].numel() for name, count in expected.items()})
    assert result.sparsity == pytest.approx(sum(expected.values()) / total)
    assert 0.89 < result.sparsity < 0.9


@pytest.mark.parametrize("config", [ONE_SHOT, FINETUNED], ids=["one shot", "finetuned"])
def test_prune_candidate_scores_the_file_as_it_loads(tiny_net, tiny_dataset, tiny_header, config):
    allocation = dict.fromkeys(prunable_weights(tiny_net), 0.6)
    result, data = prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), allocation, config)
    found = unpack(data)
    parameters = [p.detach().numpy() for p in found.model.parameters()]
    assert result.val == evaluate(found.model, tiny_dataset.val, tiny_dataset)
    assert result.packed_bytes == len(data)
    assert result.dense_bytes == 4 * sum(p.size for p in parameters)
    assert result.nonzero_bytes == 4 * sum((p != 0).sum() for p in parameters)
    assert found.header == tiny_header


def test_prune_candidate_equals_its_steps_taken_one_by_one(tiny_net, tiny_dataset, tiny_header):
    allocation = {"conv3.0.weight": 0.8, "classifier.3.weight": 0.5}
    result, data = prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), allocation, FINETUNED)
    model = copy.deepcopy(tiny_net)
    masks = make_masks(model, allocation)
    apply_masks(model, masks)
    recalibrate(model, tiny_dataset, RECALIBRATED)
    assert result.one_shot == evaluate(model, tiny_dataset.val, tiny_dataset)
    train(model, tiny_dataset, RECIPE, held=Held(masks=masks))
    assert weights_digest(unpack(data).model) == weights_digest(model)
    assert result.seed == 4


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_prune_candidate_of_a_network_that_runs_contiguous_only_is_finetuned(
    contiguous_net, tiny_dataset, tiny_header, precision
):
    fitted, _ = fit_to_device(contiguous_net, tiny_dataset, RECIPE, precision)
    config = PruneConfig(finetune=fitted, values=Values.parse("codebook:4"))
    header = replace(tiny_header, architecture=None)
    result, _ = prune_candidate(Subject(contiguous_net, tiny_dataset, header), {"fc.weight": 0.5}, config)
    assert result.val.loss < result.one_shot.loss


@pytest.mark.parametrize("values", ["fp32", "int8", "codebook:4"])
def test_prune_candidate_of_tied_weights_prunes_scores_and_ships_them_as_one(tiny_dataset, tiny_header, values):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convs = [nn.Conv2d(3, 4, 3, stride=4, padding=1), *(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))]
        model = nn.Sequential(*convs, nn.Flatten(), nn.Linear(256, 3))
    model[2].weight = model[1].weight
    sparsity = dict.fromkeys(prunable_weights(model), 0.5)
    config = replace(FINETUNED, values=Values.parse(values), spared=tuple(sparsity))
    result, data = prune_candidate(
        Subject(model, tiny_dataset, replace(tiny_header, architecture=None)), sparsity, config
    )
    assert result.measured.keys() == {"0.weight", "1.weight", "4.weight"}
    assert result.sparsity == pytest.approx(0.5, abs=0.01)
    shipped = unpack(data, lambda _: copy.deepcopy(model)).model
    assert shipped[2].weight is shipped[1].weight
    assert result.val == evaluate(shipped, tiny_dataset.val, tiny_dataset)


def test_prune_candidate_one_shot_keeps_every_kept_weight(tiny_net, tiny_dataset, tiny_header):
    result, data = prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), {"conv2.0.weight": 0.5}, ONE_SHOT)
    shipped = prunable_weights(unpack(data).model)
    for name, weight in prunable_weights(tiny_net).items():
        kept = shipped[name] != 0
        assert torch.equal(shipped[name][kept], weight[kept])
        assert kept.all() == (name != "conv2.0.weight")
    assert result.val == result.one_shot
    assert result.seed == 0
    assert result.seconds.keys() == {"prune", "evaluate", "quantise", "pack"}


def test_prune_candidate_leaves_the_dense_network_as_it_is(tiny_net, tiny_dataset, tiny_header):
    tiny_net.res1.eval()
    digest, modes = weights_digest(tiny_net), [m.training for m in tiny_net.modules()]
    state = torch.get_rng_state()
    prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), {"conv2.0.weight": 0.5}, FINETUNED)
    assert weights_digest(tiny_net) == digest
    assert [m.training for m in tiny_net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in tiny_net.parameters())


def test_prune_candidate_that_goes_on_keeps_what_its_start_has_learned(tiny_net, tiny_dataset, tiny_header):
    names = prunable_weights(tiny_net)
    _, first = prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), dict.fromkeys(names, 0.5), FINETUNED)
    start = unpack(first).model
    before = weights_digest(start)
    result, data = prune_candidate(
        Subject(tiny_net, tiny_dataset, tiny_header), dict.fromkeys(names, 0.75), ONE_SHOT, start=start
    )
    assert weights_digest(start) == before
    had, has = prunable_weights(start), prunable_weights(unpack(data).model)
    for name, weight in has.items():
        kept = weight != 0
        assert int(kept.sum()) == weight.numel() - round(0.75 * weight.numel())
        assert torch.equal(weight[kept], had[name][kept])
        assert (weight[kept].abs().min() >= had[name][~kept].abs().max()) or weight.numel() < 100
    assert result.measured == pytest.approx({n: round(0.75 * w.numel()) / w.numel() for n, w in has.items()})


@pytest.mark.parametrize("config", [FINETUNED, GRADUAL], ids=["at once", "gradual"])
def test_prune_candidate_that_goes_on_may_have_more_weights_than_its_start(tiny_net, tiny_dataset, tiny_header, config):
    name = "res2.0.0.weight"
    _, first = prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), {name: 0.9}, FINETUNED)
    start = unpack(first).model
    result, _ = prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), {name: 0.6}, config, start=start)
    assert result.measured[name] == pytest.approx(0.6, abs=1e-3)


def test_prune_candidate_gives_the_network_before_its_values_are_rounded(tiny_net, tiny_dataset, tiny_header):
    seen = []
    callbacks = Callbacks(on_finetuned=lambda network: seen.append(copy.deepcopy(network)))
    config = replace(FINETUNED, values=Values.parse("codebook:2"))
    allocation = {"conv4.0.weight": 0.5}
    _, data = prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), allocation, config, callbacks=callbacks)
    _, exact = prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), allocation, FINETUNED)
    (network,) = seen
    assert weights_digest(network) == weights_digest(unpack(exact).model)
    assert weights_digest(network) != weights_digest(unpack(data).model)


def test_prune_candidate_never_reads_the_test_split(tiny_net, tiny_dataset, tiny_header):
    result, _ = prune_candidate(
        Subject(tiny_net, replace(tiny_dataset, test=None), tiny_header), {"conv2.0.weight": 0.5}, FINETUNED
    )
    assert result.val.count == 24


@pytest.mark.parametrize("name", ["taylor", "random"])
def test_prune_candidate_by_and_by_with_any_criterion_ends_exact(tiny_net, tiny_dataset, tiny_header, name):
    allocation = dict.fromkeys(prunable_weights(tiny_net), 0.6)
    result, _ = prune_candidate(
        Subject(tiny_net, tiny_dataset, tiny_header), allocation, replace(GRADUAL, saliency=name)
    )
    sizes = {name: w.numel() for name, w in prunable_weights(tiny_net).items()}
    assert result.measured == pytest.approx({name: round(0.6 * size) / size for name, size in sizes.items()})


def test_prune_candidate_twice_gives_the_same_bytes(tiny_net, tiny_dataset, tiny_header):
    first, second = (
        prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), {"conv2.0.weight": 0.5}, FINETUNED)[1]
        for _ in range(2)
    )
    assert first == second


def test_prune_candidate_finetuning_is_followed_by_callbacks(tiny_net, tiny_dataset, tiny_header):
    epochs, steps = [], []
    result, _ = prune_candidate(
        Subject(tiny_net, tiny_dataset, tiny_header),
        {"conv2.0.weight": 0.5},
        FINETUNED,
        callbacks=Callbacks(on_epoch=lambda epoch, _: epochs.append(epoch), on_step=lambda *step: steps.append(step)),
    )
    assert [epoch.epoch for epoch in epochs] == [1, 2]
    assert steps[-1] == (10, 10)
    assert epochs[-1].val == result.val


def test_prune_candidate_unknown_layer_is_refused(tiny_net, tiny_dataset, tiny_header):
    with pytest.raises(InputError, match="conv9"):
        prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), {"conv9.0.weight": 0.5}, ONE_SHOT)


def test_prune_candidate_that_diverges_raises_diverged_error(tiny_net, tiny_dataset, tiny_header):
    config = PruneConfig(finetune=TrainConfig(epochs=2, batch_size=8, max_lr=1e30))
    with pytest.raises(DivergedError):
        prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), {}, config)


@pytest.mark.parametrize(("epochs", "whole", "share"), [(3, 3, 1.0), (0.25, 1, 0.25), (1.5, 2, 0.75)])
def test_finetuning_of_part_of_an_epoch_takes_part_of_the_images(tiny_dataset, epochs, whole, share):
    config = finetuning(epochs, batch_size=64, seed=2)
    assert config.finetune == TrainConfig(**FINETUNE | {"epochs": whole, "batch_size": 64, "seed": 2})
    assert config.share == share
    assert len(config.part(tiny_dataset).train) * whole == epochs * len(tiny_dataset.train)


@pytest.mark.parametrize("gradual", [0.0, 0.5])
@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 3), (1.5, 8), (2, 10)])
def test_finetuning_of_part_of_an_epoch_takes_the_steps_of_its_images(tiny_net, tiny_dataset, epochs, steps, gradual):
    config = finetuning(epochs, batch_size=16)
    config = replace(config, finetune=replace(config.finetune, gradual=gradual))
    taken = []
    callbacks = Callbacks(on_step=lambda *step: taken.append(step))
    prune_and_finetune(tiny_net, tiny_dataset, {"conv2.0.weight": 0.5}, config, callbacks=callbacks)
    assert taken == [(step, steps) for step in range(1, steps + 1)]


def test_finetuning_of_one_and_a_half_epochs_goes_on_where_as_long_a_one_has_ended(tiny_dataset):
    numbered = replace(tiny_dataset, train=replace(tiny_dataset.train, labels=torch.arange(72)))
    config = finetuning(1.5, seed=2)
    order = torch.randperm(72, generator=torch.Generator().manual_seed(2))
    # two passes over three quarters each time: the second part begins with the last quarter of the order
    assert torch.equal(config.part(numbered).train.labels, order[:54])
    assert torch.equal(replace(config, had=1.5).part(numbered).train.labels, torch.cat([order[54:], order[:36]]))


@pytest.mark.parametrize("config", [FINETUNED, GRADUAL], ids=["at once", "gradual"])
@pytest.mark.parametrize("goes_on", [False, True])
def test_finetuned_has_the_dense_network_for_its_teacher_and_begins_where_it_should(
    tiny_net, tiny_dataset, monkeypatch, config, goes_on
):
    trained = []

    def spy(model, dataset, recipe, *, held, callbacks):
        trained.append((copy.deepcopy(model), held))

    monkeypatch.setattr("netprune.pruning.train", spy)
    start = copy.deepcopy(tiny_net)
    apply_masks(start, make_masks(start, {"conv4.0.weight": 0.5}))
    before = start if goes_on else tiny_net
    sparsity = {"conv2.0.weight": 0.5, "conv4.0.weight": 0.75}
    prune_and_finetune(tiny_net, tiny_dataset, sparsity, config, start=before if goes_on else None)
    ((model, held),) = trained
    assert held.teacher is tiny_net
    if config is GRADUAL:  # nothing is pruned yet: that is what rises
        assert weights_digest(model) == weights_digest(before)
        assert not held.masks
        assert held.rising is not None
    else:
        found = {name: measured_sparsity(model)[name] for name in sparsity}
        assert found == pytest.approx(sparsity, abs=0.01)
        assert held.masks.keys() == sparsity.keys()
        assert held.rising is None


def test_finetuning_that_follows_another_goes_on_with_the_next_images_and_draws_of_its_own(tiny_dataset):
    first = finetuning(0.25, seed=2)
    second = replace(first, had=0.25)
    assert first.recipe == first.finetune
    assert len({replace(first, had=had).recipe.seed for had in (0.0, 0.25, 1.25)}) == 3
    assert replace(second.recipe, seed=2) == first.recipe
    assert torch.equal(second.part(tiny_dataset).train.images, tiny_dataset.part(0.25, seed=2, after=0.25).train.images)


def test_finetuning_that_follows_another_trains_with_its_own_draws(tiny_net, tiny_dataset):
    first, again, second = (
        weights_digest(prune_and_finetune(tiny_net, tiny_dataset, {}, PruneConfig(finetune=RECIPE, had=had)))
        for had in (0.0, 0.0, 2.0)
    )
    assert first == again != second


def test_prune_config_with_a_negative_past_is_refused():
    with pytest.raises(InputError, match="had is -1"):
        PruneConfig(had=-1.0)


def test_finetuning_of_zero_epochs_is_pruning_alone():
    assert finetuning(0).finetune is None


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01])
def test_prune_config_share_out_of_range_is_refused(share):
    with pytest.raises(InputError, match="share"):
        PruneConfig(share=share)


def test_prune_candidate_is_checked_before_and_on_the_way_and_ends_on_what_a_check_raises(
    tiny_net, tiny_dataset, tiny_header
):
    seen, steps = {}, []
    callbacks = Callbacks(
        on_step=lambda done, _: steps.append(done),
        on_check=lambda share, found: seen.setdefault(share, (len(steps), found)),
        checks=(0.25, 0.5),
    )
    allocation = dict.fromkeys(prunable_weights(tiny_net), 0.6)
    result, _ = prune_candidate(
        Subject(tiny_net, tiny_dataset, tiny_header), allocation, FINETUNED, callbacks=callbacks
    )
    total = len(steps)
    assert [(share, at) for share, (at, _) in seen.items()] == [(0.0, 0), (0.25, -(-total // 4)), (0.5, total // 2)]
    assert seen[0.0][1] == result.one_shot

    def stop(share, _):
        if share == 0.25:
            raise ZeroDivisionError

    steps.clear()
    with pytest.raises(ZeroDivisionError):
        prune_candidate(
            Subject(tiny_net, tiny_dataset, tiny_header),
            allocation,
            FINETUNED,
            callbacks=Callbacks(on_step=callbacks.on_step, on_check=stop, checks=(0.25, 0.5)),
        )
    assert len(steps) == -(-total // 4)


def test_prune_candidate_checks_do_not_change_what_comes_out(tiny_net, tiny_dataset, tiny_header):
    allocation = dict.fromkeys(prunable_weights(tiny_net), 0.6)
    watched = Callbacks(on_check=lambda *_: None, checks=(0.25, 0.5, 0.75))
    plain = prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), allocation, FINETUNED)[1]
    assert (
        prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), allocation, FINETUNED, callbacks=watched)[1]
        == plain
    )


def test_prune_config_without_options_is_one_shot_magnitude():
    assert (ONE_SHOT.saliency, ONE_SHOT.finetune) == ("magnitude", None)


def test_prune_config_unknown_saliency_is_refused_with_the_choices():
    with pytest.raises(InputError, match=r"unknown saliency 'size': choose one of magnitude, lamp"):
        PruneConfig(saliency="size")


@pytest.mark.parametrize("config", [ONE_SHOT, FINETUNED], ids=["one shot", "finetuned"])
def test_prune_candidate_of_everything_in_a_layer_ships_an_empty_layer(tiny_net, tiny_dataset, tiny_header, config):
    result, data = prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), {"res1.0.0.weight": 1.0}, config)
    shipped = prunable_weights(unpack(data).model)
    assert [name for name, w in shipped.items() if not w.any()] == ["res1.0.0.weight"]
    assert result.measured["res1.0.0.weight"] == 1.0


@pytest.mark.parametrize("name", SALIENCIES)
def test_prune_candidate_takes_the_least_salient_first(tiny_net, tiny_dataset, tiny_header, name):
    allocation = {"conv2.0.weight": 0.5, "conv4.0.weight": 0.7}
    _, data = prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), allocation, PruneConfig(saliency=name))
    expected = make_masks(tiny_net, allocation, SALIENCIES[name], loss_gradients(tiny_net, tiny_dataset))
    shipped = prunable_weights(unpack(data).model)
    assert all(torch.equal(shipped[layer] != 0, mask) for layer, mask in expected.items())
    by_magnitude = make_masks(tiny_net, allocation)
    same = all(torch.equal(by_magnitude[layer], mask) for layer, mask in expected.items())
    assert same == (name in ("magnitude", "lamp", "norm_loss"))


@pytest.mark.parametrize("text", ["fp16", "int8", "codebook:2"])
@pytest.mark.parametrize("finetune", [None, RECIPE], ids=["one shot", "finetuned"])
def test_prune_candidate_with_fewer_bits_scores_the_file_as_it_loads(
    tiny_net, tiny_dataset, tiny_header, text, finetune
):
    allocation = dict.fromkeys(prunable_weights(tiny_net), 0.6)
    config = PruneConfig(finetune=finetune, values=Values.parse(text))
    result, data = prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), allocation, config)
    found = unpack(data).model
    assert result.val == evaluate(found, tiny_dataset.val, tiny_dataset)
    assert all(int((w == 0).sum()) >= round(0.6 * w.numel()) for w in prunable_weights(found).values())
    if text == "codebook:2":
        assert all(len(weight[weight != 0].unique()) <= 4 for weight in prunable_weights(found).values())
    plain = PruneConfig(finetune=finetune)
    assert (
        result.packed_bytes
        < prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), allocation, plain)[0].packed_bytes
    )


def test_quantise_and_train_recovers_what_a_codebook_costs(tiny_net, tiny_dataset):
    train(tiny_net, tiny_dataset, TrainConfig(epochs=8, batch_size=16))
    plain, trained = copy.deepcopy(tiny_net), copy.deepcopy(tiny_net)
    quantise_and_train(plain, tiny_dataset, Values.parse("codebook:2"))
    recipe = TrainConfig(epochs=1, batch_size=16)
    quantise_and_train(trained, tiny_dataset, Values.parse("codebook:2"), finetune=recipe)
    losses = [evaluate(model, tiny_dataset.val, tiny_dataset).loss for model in (plain, trained)]
    assert losses[1] < losses[0]
    for weight in prunable_weights(trained).values():  # as the file stores them, and not as training left them
        assert torch.equal(round_significand(weight.detach(), SIGNIFICANT_BITS), weight)


def test_prune_candidate_without_finetuning_looks_at_no_check(tiny_net, tiny_dataset, tiny_header):
    seen = []
    callbacks = Callbacks(on_check=lambda share, _: seen.append(share))
    prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), {}, PruneConfig(finetune=None), callbacks=callbacks)
    assert seen == []


@pytest.mark.parametrize("values", ["fp32", "codebook:4"])
def test_prune_candidate_of_a_private_class_is_that_of_the_known_architecture(
    tiny_net, tiny_dataset, tiny_header, values
):
    config = replace(FINETUNED, values=Values.parse(values))
    allocation = dict.fromkeys(prunable_weights(tiny_net), 0.6)
    known, _ = prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), allocation, config)
    own, file = prune_candidate(
        Subject(tiny_net, tiny_dataset, replace(tiny_header, architecture=None)), allocation, config
    )
    assert own.val == known.val
    assert own.measured == known.measured
    given = copy.deepcopy(tiny_net)
    assert evaluate(unpack(file, given).model, tiny_dataset.val, tiny_dataset) == own.val


def test_prune_candidate_leaves_layers_that_are_not_named_and_are_spared_whole(tiny_net, tiny_dataset, tiny_header):
    named = dict.fromkeys(list(prunable_weights(tiny_net))[2:-1], 0.7)
    whole = prunable_weights(tiny_net).keys() - named.keys()
    config = replace(FINETUNED, values=Values.parse("codebook:2"), spared=tuple(whole))
    result, _ = prune_candidate(Subject(tiny_net, tiny_dataset, tiny_header), named, config)
    assert all(result.measured[name] == 0 for name in whole)
    assert all(result.measured[name] >= 0.69 for name in named)


def test_prune_config_epochs_are_those_of_the_share_and_none_without_finetuning():
    assert (finetuning(0.25).epochs, finetuning(2).epochs, finetuning(2.5).epochs) == (0.25, 2, 2.5)
    assert PruneConfig().epochs == 0
