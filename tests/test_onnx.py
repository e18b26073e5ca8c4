"""A network as ONNX: what onnxruntime makes of it is what torch makes of the module."""

import copy
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import netprune.onnx
from netprune.errors import InputError
from netprune.header import PackedHeader
from netprune.loader import normalise
from netprune.masks import apply_masks, make_masks
from netprune.models import Architecture, build_model
from netprune.onnx import to_onnx
from netprune.packing import PackedModel
from netprune.weights import prunable_weights, weights_digest


@pytest.fixture(scope="module")
def packed(tiny_dataset):
    """A Net10 of width 2, half pruned, with statistics of its own, as it comes out of its file."""
    architecture = Architecture(name="net10", num_classes=3, width=2)
    model = build_model(architecture, seed=0)
    apply_masks(model, make_masks(model, dict.fromkeys(prunable_weights(model), 0.5)))
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if "running" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.2)
    header = PackedHeader(
        architecture=architecture,
        classes=tiny_dataset.classes,
        mean=tiny_dataset.mean,
        std=tiny_dataset.std,
        dense_digest=weights_digest(model),
    )
    return PackedModel(model, header)


@pytest.fixture(scope="module")
def model_file(packed):
    """The ONNX file of `packed`."""
    return to_onnx(packed)


@pytest.mark.parametrize("batch", [1, 5, 24])
def test_onnx_outputs_equal_the_modules_on_pixels_for_any_batch(packed, model_file, tiny_dataset, batch):
    pixels = tiny_dataset.val.images[:batch]
    session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": (pixels / 255).numpy()})
    with torch.no_grad():
        expected = packed.model.eval()(normalise(pixels, tiny_dataset))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_onnx_file_is_valid_and_names_classes_and_dense_network(packed, model_file):
    model = onnx.load_from_string(model_file)
    onnx.checker.check_model(model, full_check=True)
    notes = {prop.key: prop.value for prop in model.metadata_props}
    assert notes["classes"].split("\n") == list(packed.header.classes)
    assert notes["dense_digest"] == packed.header.dense_digest


def test_onnx_leaves_the_network_and_its_mode_alone(packed):
    before = weights_digest(packed.model), copy.deepcopy([m.training for m in packed.model.modules()])
    to_onnx(packed)
    assert (weights_digest(packed.model), [m.training for m in packed.model.modules()]) == before


def test_onnx_that_computes_something_else_is_refused(packed, monkeypatch):
    export = netprune.onnx._export

    def tampered(module, packed):
        model = onnx.load_from_string(export(module, packed))
        weight = next(w for w in model.graph.initializer if "classifier.4.bias" in w.name)
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + 0.01, weight.name))
        return model.SerializeToString()

    monkeypatch.setattr(netprune.onnx, "_export", tampered)
    with pytest.raises(InputError, match=r"up to 0\.01 apart in onnxruntime"):
        to_onnx(packed)


def of_one_batch(data):
    """A model that takes two images and no other number."""
    model = onnx.load_from_string(data)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    return model.SerializeToString()


@pytest.mark.parametrize("tampered", [lambda _: b"no model", of_one_batch])
def test_onnx_that_onnxruntime_cannot_run_is_refused_in_one_sentence(packed, model_file, monkeypatch, tampered):
    monkeypatch.setattr(netprune.onnx, "_export", lambda *_: tampered(model_file))
    with pytest.raises(InputError, match=r"onnxruntime cannot run the ONNX model, so it is not written: \w+") as caught:
        to_onnx(packed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_onnx_without_its_packages_names_the_mend(packed, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'netprune\[onnx\]'"):
        to_onnx(packed)


def test_onnx_of_another_image_size_takes_such_images(packed):
    model = build_model(packed.header.architecture, image_size=16)
    data = to_onnx(PackedModel(model, replace(packed.header, image_size=16)))
    pixels = np.random.default_rng(0).random((3, 3, 16, 16), dtype=np.float32)
    (found,) = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"images": pixels})
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (packed.header.mean, packed.header.std))
    with torch.no_grad():
        expected = model.eval()((torch.from_numpy(pixels) - mean) / std).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class Undecided(torch.nn.Module):
    """Takes a way that depends on the values."""

    def forward(self, images):
        return images.flatten(1)[:, :3] if float(images.sum()) > 3 else images.flatten(1)[:, 3:6]


def test_onnx_of_a_network_that_cannot_be_exported_is_one_sentence(tiny_header):
    with pytest.raises(InputError, match=r"this network cannot be written as ONNX") as caught:
        to_onnx(PackedModel(Undecided(), tiny_header))
    assert "\n" not in str(caught.value)
