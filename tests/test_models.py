"""Networks by name: the document's own figures."""

import pytest
import torch
import torch.nn.functional as F

from netprune.errors import InputError
from netprune.models import Architecture, build_model
from netprune.weights import prunable_weights, weights_digest


def net10(num_classes=3, width=2, seed=0):
    return build_model(Architecture(name="net10", num_classes=num_classes, width=width), seed=seed)


def on_meta(name, num_classes=10):
    """The network with shapes and no values: nothing to fill, so the full size costs nothing."""
    with torch.device("meta"):
        return build_model(Architecture(name=name, num_classes=num_classes))


def test_net10_at_width_128_has_the_documents_parameters():
    model = on_meta("net10")
    weights = prunable_weights(model)
    assert sum(p.numel() for p in model.parameters()) == 26_793_994
    assert len(weights) == 10
    assert sum(w.numel() for w in weights.values()) == 26_780_032


def test_net10_state_dict_has_the_documents_names():
    model = net10()
    blocks = ("conv1", "conv2", "res1.0", "res1.1", "conv3", "conv4", "res2.0", "res2.1")
    assert list(prunable_weights(model)) == [f"{b}.0.weight" for b in blocks] + [
        "classifier.3.weight",
        "classifier.4.weight",
    ]
    assert {"res1.0.0.weight", "classifier.3.weight", "conv1.1.running_mean"} <= model.state_dict().keys()


def test_net10_forward_equals_the_document_written_out():
    model = net10(num_classes=5, width=3).eval()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def block(x, b):
        x = F.conv2d(x, b[0].weight, b[0].bias, padding=1)
        x = F.batch_norm(x, b[1].running_mean, b[1].running_var, b[1].weight, b[1].bias)
        return x.clamp(min=0)

    with torch.no_grad():
        x = F.max_pool2d(block(block(images, model.conv1), model.conv2), 2)
        x = block(block(x, model.res1[0]), model.res1[1]) + x
        x = F.max_pool2d(block(F.max_pool2d(block(x, model.conv3), 2), model.conv4), 2)
        x = block(block(x, model.res2[0]), model.res2[1]) + x
        x = x.amax((2, 3)) @ model.classifier[3].weight.T + model.classifier[3].bias
        x = x @ model.classifier[4].weight.T + model.classifier[4].bias
        logits = model(images)
    assert logits.shape == (4, 5)
    torch.testing.assert_close(logits, x)


def test_vgg16_has_an_output_a_class():
    model = on_meta("vgg16", num_classes=7)
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 7)
    assert len(prunable_weights(model)) == 16


@pytest.mark.parametrize("size", [8, 15, 31, 32, 64, 100])
def test_net10_of_any_image_size_has_the_same_tensors_and_takes_such_images(size):
    architecture = Architecture(name="net10", num_classes=3, width=2)
    model = build_model(architecture, image_size=size)
    assert model.eval()(torch.zeros(2, 3, size, size)).shape == (2, 3)
    assert weights_digest(model) == weights_digest(build_model(architecture))


@pytest.mark.parametrize(("name", "size", "least"), [("net10", 7, 8), ("vgg16", 31, 32)])
def test_build_model_for_images_that_are_too_small_is_refused_with_the_least(name, size, least):
    with pytest.raises(InputError, match=rf"{name} .*{least}×{least} pixels or more, not {size}"):
        build_model(Architecture(name=name, num_classes=3), image_size=size)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"name": "net11"}, "net11"), ({"width": 0}, "width"), ({"num_classes": 1}, "2 classes")],
)
def test_architecture_bad_value_is_refused_by_name(change, word):
    with pytest.raises(InputError, match=word):
        Architecture(**{"name": "net10", "num_classes": 3, "width": 2, **change})


def test_build_model_same_seed_gives_the_same_network_and_other_seed_another():
    digests = [weights_digest(net10(seed=seed)) for seed in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]


def test_build_model_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    net10(seed=9)
    assert torch.equal(torch.get_rng_state(), before)
