"""Evaluation: the same figures as a plain loop, and the network's modes as they were."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
import torch

from netprune import evaluation
from netprune.data import Split
from netprune.evaluation import confusion, eval_mode, evaluate, image_losses, predict, standard_error, summarise
from netprune.weights import weights_digest


def modes(model):
    return [module.training for module in model.modules()]


def mix_modes(model):
    """Some modules in eval mode, some in train mode, a parent and its children apart."""
    model.train()
    model.conv1[1].eval()
    model.res1.eval()
    model.res1[0][1].train()
    return modes(model)


@pytest.mark.parametrize("batch", [5, 24, 500])
def test_evaluate_equals_a_plain_loop(tiny_dataset, tiny_net, monkeypatch, batch):
    monkeypatch.setattr(evaluation, "EVAL_BATCH", batch)
    result = evaluate(tiny_net, tiny_dataset.val, tiny_dataset)
    tiny_net.eval()
    losses, hits = [], []
    for image, label in zip(tiny_dataset.val.images, tiny_dataset.val.labels, strict=True):
        with torch.no_grad():
            (logits,) = tiny_net(((image / 255 - 0.38) / 0.25)[None]).double().numpy()
        losses.append(-scipy.special.log_softmax(logits)[label])
        hits.append(np.argmax(logits) == label)
    assert result.count == 24
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.loss_se == pytest.approx(scipy.stats.sem(losses), rel=1e-4)
    assert result.accuracy == np.mean(hits)
    assert result.accuracy_se == pytest.approx(np.std(hits) / 24**0.5)


def test_evaluate_mirrored_equals_a_plain_loop_over_images_and_their_mirror_images(tiny_dataset, tiny_net):
    patches = torch.randint(0, 256, (24, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = patches.repeat_interleave(8, 2).repeat_interleave(8, 3)  # whatever way they are turned, others
    tiny_net.eval().classifier[4].weight.data.mul_(20)
    losses, hits = [], []
    for image, label in zip(images.numpy(), tiny_dataset.val.labels, strict=True):
        seen = [(shown / np.float32(255) - 0.38) / 0.25 for shown in (image, image[:, :, ::-1])]  # left to right
        with torch.no_grad():
            logits = sum(tiny_net(torch.tensor(each)[None])[0].double().numpy() for each in seen) / 2
        losses.append(-scipy.special.log_softmax(logits)[label])
        hits.append(np.argmax(logits) == label)
    split = Split(images, tiny_dataset.val.labels)
    result = evaluate(tiny_net, split, tiny_dataset, mirrored=True)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.accuracy == np.mean(hits)
    assert evaluate(tiny_net, split, tiny_dataset).loss != pytest.approx(result.loss, rel=1e-3)


def test_evaluate_changes_neither_weights_buffers_modes_nor_generator(tiny_dataset, tiny_net):
    before, wanted, state = weights_digest(tiny_net), mix_modes(tiny_net), torch.get_rng_state()
    evaluate(tiny_net, tiny_dataset.val, tiny_dataset)
    assert weights_digest(tiny_net) == before
    assert modes(tiny_net) == wanted
    assert torch.equal(torch.get_rng_state(), state)


def test_image_losses_twice_are_the_same_bits(tiny_dataset, tiny_net):
    first, second = (image_losses(tiny_net, tiny_dataset.val, tiny_dataset) for _ in range(2))
    assert first[0].dtype == torch.float32
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not first[0].requires_grad


def test_eval_mode_inside_all_modules_are_in_eval_mode(tiny_net):
    wanted = mix_modes(tiny_net)
    with eval_mode(tiny_net):
        assert not any(modes(tiny_net))
    assert modes(tiny_net) == wanted


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_eval_mode_after_an_exception_puts_every_mode_back(tiny_net, error):
    wanted = mix_modes(tiny_net)
    with pytest.raises(error), eval_mode(tiny_net):
        raise error
    assert modes(tiny_net) == wanted


@pytest.mark.parametrize("hits", [0, 3, 10])
def test_summarise_gives_the_binomial_error(hits):
    right = torch.arange(10) < hits
    result = summarise(torch.linspace(0, 1, 10), right)
    assert result.accuracy == hits / 10
    assert result.accuracy_se == pytest.approx(scipy.stats.binom.std(10, hits / 10) / 10)
    assert result.loss == pytest.approx(0.5)


def test_standard_error_equals_scipys_and_is_zero_for_one_value():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert standard_error(values) == pytest.approx(scipy.stats.sem(values.double().numpy()))
    assert standard_error(values[:1]) == 0


def test_predict_agrees_with_the_accuracy_and_keeps_the_mode(tiny_net, tiny_dataset):
    wanted = mix_modes(tiny_net)
    found = predict(tiny_net, tiny_dataset.val, tiny_dataset)
    hits = (found == tiny_dataset.val.labels).double().mean().item()
    assert hits == evaluate(tiny_net, tiny_dataset.val, tiny_dataset).accuracy
    assert modes(tiny_net) == wanted


def test_confusion_equals_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    labels, predicted = torch.randint(0, 4, (2, 100), generator=generator)
    expected = sklearn.metrics.confusion_matrix(labels, predicted, labels=range(5))
    assert confusion(labels, predicted, 5).tolist() == expected.tolist()
