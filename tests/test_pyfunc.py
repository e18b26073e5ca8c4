"""The packed file behind MLflow's `predict`: the module's own outputs."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from netprune import pyfunc
from netprune.errors import InputError
from netprune.factory import find_factory
from netprune.files import write_whole
from netprune.loader import normalise
from netprune.packing import pack
from netprune.pyfunc import _load_pyfunc
from netprune.recipes import TrainConfig
from netprune.training import train
from netprune.weights import weights_digest


@pytest.fixture
def predictor(tmp_path, tiny_net, tiny_header):
    """`tiny_net` out of its file."""
    write_whole(tmp_path / "net.netprune", pack(tiny_net, tiny_header))
    return _load_pyfunc(str(tmp_path / "net.netprune"))


@pytest.mark.parametrize("batch", [500, 7])
def test_predict_equals_the_modules_logits_on_normalised_images(predictor, tiny_net, tiny_dataset, monkeypatch, batch):
    monkeypatch.setattr(pyfunc, "EVAL_BATCH", batch)
    logits = predictor.predict((tiny_dataset.val.images / 255).numpy())
    with torch.no_grad():
        expected = tiny_net.eval()(normalise(tiny_dataset.val.images, tiny_dataset))
    assert logits.dtype == np.float32
    assert logits.shape == (24, 3)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_predict_in_several_threads_has_the_network_to_itself(predictor, tiny_dataset, monkeypatch):
    inside, most = [], []
    whole = pyfunc.eval_mode

    @contextmanager
    def watched(model):
        inside.append(model)
        most.append(len(inside))
        time.sleep(0.02)
        with whole(model):
            yield
        inside.pop()

    monkeypatch.setattr(pyfunc, "eval_mode", watched)
    images = (tiny_dataset.val.images / 255).numpy()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(predictor.predict, [images] * 8))
    assert most == [1] * 8
    assert all(np.array_equal(one, found[0]) for one in found)


def test_predict_leaves_weights_modes_and_input_alone(predictor, tiny_dataset):
    model = predictor.get_raw_model()
    images = (tiny_dataset.val.images / 255).numpy()
    images.setflags(write=False)
    digest, before = weights_digest(model), images.copy()
    predictor.predict(images)
    assert weights_digest(model) == digest
    assert np.array_equal(images, before)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    "form", [lambda a: a.astype(np.float64), lambda a: np.asfortranarray(a), lambda a: a[::-1][::-1]]
)
def test_predict_of_the_same_images_in_another_form_is_the_same(predictor, tiny_dataset, form):
    images = (tiny_dataset.val.images[:5] / 255).numpy()
    np.testing.assert_allclose(predictor.predict(form(images)), predictor.predict(images), rtol=1e-5, atol=1e-5)


def test_predict_after_training_the_raw_model_follows_it(predictor, tiny_dataset):
    images = (tiny_dataset.val.images / 255).numpy()
    before = predictor.predict(images)
    train(predictor.get_raw_model(), tiny_dataset, TrainConfig(epochs=6, batch_size=8))
    after = predictor.predict(images)
    assert not np.allclose(before, after)
    assert (after.argmax(1) == tiny_dataset.val.labels.numpy()).mean() > 0.8


def test_get_raw_model_is_the_packed_network_ready_to_train(predictor, tiny_net):
    model = predictor.get_raw_model()
    assert weights_digest(model) == weights_digest(tiny_net)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training


@pytest.mark.parametrize("shape", [(2, 3, 32, 31), (2, 3, 64, 64), (2, 1, 32, 32), (3, 32, 32), (2, 32, 32, 3)])
def test_predict_of_images_of_another_shape_is_refused_with_the_one_it_takes(predictor, shape):
    with pytest.raises(InputError, match=r"this network takes \(N, 3, 32, 32\), pixels in \[0, 1\]"):
        predictor.predict(np.zeros(shape, dtype=np.float32))


@pytest.fixture
def own_file(own_module, tiny_header, tmp_path):
    """A network of the user's own class for images of 16×16, and its file."""
    network = find_factory(f"{own_module()}:network").build(3, 16)
    write_whole(tmp_path / "own.netprune", pack(network, replace(tiny_header, architecture=None, image_size=16)))
    return network, str(tmp_path / "own.netprune")


def test_load_pyfunc_of_an_own_network_builds_what_the_model_description_names(own_file):
    network, path = own_file
    images = np.random.default_rng(0).random((5, 3, 16, 16), dtype=np.float32)
    predictor = _load_pyfunc(path, {pyfunc.NETWORK: "mynet:network"})
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.38,) * 3, (0.25,) * 3))
    with torch.no_grad():
        expected = network.eval()((torch.from_numpy(images) - mean) / std).numpy()
    np.testing.assert_array_equal(predictor.predict(images), expected)


@pytest.mark.parametrize("description", [None, {}, {"other": "mynet:network"}])
def test_load_pyfunc_of_an_own_network_without_its_function_is_refused(own_file, description):
    with pytest.raises(InputError, match=r"own\.netprune: this file holds a network of the user's own class"):
        _load_pyfunc(own_file[1], description)
