"""What a scan found: its parts, and that a file keeps it exactly."""

import json
import math
from dataclasses import fields, replace

import numpy as np
import pytest

from netprune.evaluation import Evaluation
from netprune.sensitivity import LayerCurve, Sensitivity

BASELINE = Evaluation(loss=0.1 + 0.2, loss_se=1 / 7, accuracy=2 / 3, accuracy_se=0.0, count=3)


def layer_curve(layer, size=10, points=3, **values):
    """A curve of so many points; what is not given is zero."""
    floats = {
        name: np.zeros(points)
        for name in ("sparsities", "loss", "damage", "damage_se", "accuracy", "accuracy_se")
        if name not in values
    }
    others = {"start": 0.0, "count": np.full(points, 24), "changed": np.ones(points, dtype=bool)} | floats
    return LayerCurve(layer=layer, size=size, **(others | values))


def sensitivity(*curves, **values):
    given = {"split": "val", "val_digest": "ab", "digest": "cd", "max_se": 0.02, "missed": 2, "compute": "fp32"}
    return Sensitivity(curves=curves, baseline=BASELINE, **(given | {"whole_passes": ""} | values))


AWKWARD = sensitivity(
    layer_curve(
        "conv.weight",
        size=2**40,
        points=2,
        start=0.1 + 0.2,
        sparsities=np.array([0.1 + 0.7, 1.0]),
        loss=np.array([1 / 3, 5e-324]),
        damage=np.array([-0.0, -1e300]),
        damage_se=np.array([math.inf, math.nan]),
        accuracy=np.array([0.0, 1.0]),
        count=np.array([2**53 + 1, 1]),
        changed=np.array([False, True]),
    ),
    layer_curve("naïve “layer”.weight", points=1, sparsities=np.array([1.0]), changed=np.array([False])),
    max_se=0.1 + 0.2,
    whole_passes='the network cannot be traced (a "reason")',
)


def assert_same(one, other):
    """The same to the bit, types included."""
    assert type(one) is type(other)
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert type(a) is type(b), field.name
        if isinstance(a, np.ndarray):
            assert (a.dtype, a.shape) == (b.dtype, b.shape), field.name
            assert np.array_equal(a, b, equal_nan=a.dtype == float), field.name
            assert np.array_equal(np.signbit(a), np.signbit(b)) or a.dtype != float, field.name
        elif field.name == "curves":
            assert len(a) == len(b)
            for ours, theirs in zip(a, b, strict=True):
                assert_same(ours, theirs)
        else:
            assert a == b, field.name


def test_sensitivity_through_json_is_exactly_the_same():
    assert_same(Sensitivity.from_json(AWKWARD.to_json()), AWKWARD)


def test_sensitivity_through_json_twice_is_the_same_text():
    text = AWKWARD.to_json()
    assert Sensitivity.from_json(text).to_json() == text


def test_sensitivity_json_is_plain():
    parsed = json.loads(AWKWARD.to_json(), parse_constant=pytest.fail)  # NaN and Infinity, which JSON has not
    assert [curve["layer"] for curve in parsed["curves"]] == ["conv.weight", "naïve “layer”.weight"]
    assert parsed["curves"][0]["sparsities"] == [0.1 + 0.7, 1.0]
    assert parsed["curves"][0]["count"] == [2**53 + 1, 1]
    assert parsed["curves"][0]["changed"] == [False, True]
    assert parsed["baseline"]["count"] == 3


def test_sensitivity_knows_its_layers_in_order_and_their_sizes():
    scan = sensitivity(layer_curve("b", size=7), layer_curve("a", size=5), layer_curve("c", size=6))
    assert scan.layers == ("b", "a", "c")
    assert scan.sizes == {"b": 7, "a": 5, "c": 6}
    assert list(scan.sizes) == ["b", "a", "c"]


def test_sensitivity_gives_the_curve_of_a_layer_by_its_name():
    curves = layer_curve("b"), layer_curve("a")
    scan = sensitivity(*curves)
    assert scan["b"] is curves[0]
    assert scan["a"] is curves[1]
    with pytest.raises(KeyError, match="'c'"):
        scan["c"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [([False, False, False], False), ([False, False, True], True), ([True, False, False], True), ([True] * 3, True)],
)
def test_layer_curve_has_an_effect_once_any_image_changes(changed, expected):
    curve = layer_curve("a", changed=np.array(changed))
    assert curve.has_effect is expected
    # losses that cancel out are an effect, a damage that a file has rounded is none
    assert replace(curve, damage=np.ones(3)).has_effect is expected
