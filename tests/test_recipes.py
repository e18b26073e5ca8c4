"""Recipes: their figures, and what is refused."""

import math

import pytest

from netprune.errors import InputError
from netprune.recipes import RECIPES, TrainConfig, recipe


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", -1),
        ("epochs", 1.5),
        ("batch_size", 1),
        ("batch_size", 2.5),
        ("optimizer", "lion"),
        ("max_lr", 0.0),
        ("max_lr", -0.1),
        ("max_lr", math.nan),
        ("max_lr", math.inf),
        ("schedule", "cosine"),
        ("warm_up", 1.0),
        ("warm_up", -0.1),
        ("weight_decay", -1e-9),
        ("weight_decay", math.nan),
        ("weight_decay", math.inf),
        ("grad_clip", 0.0),
        ("grad_clip", math.nan),
        ("label_smoothing", 1.0),
        ("crop_padding", -1),
        ("crop_padding", 32),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("ema", 1.0),
        ("ema", -0.1),
        ("distillation", 1.1),
        ("gradual", 1.0),
        ("gradual", -0.1),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 0.5),
    ],
)
def test_train_config_bad_value_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=rf"{name} is {value}; it must be"):
        TrainConfig(**{name: value})


def test_train_config_defaults_are_the_documents():
    config = TrainConfig()
    assert (config.epochs, config.max_lr, config.weight_decay, config.grad_clip) == (20, 0.01, 1e-4, 0.1)
    assert (config.optimizer, config.schedule) == ("adam", "one_cycle")
    assert not any((config.label_smoothing, config.alternating_flip, config.ema, config.distillation, config.gradual))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_takes_changes_and_keeps_the_rest(name):
    changed = recipe(name, epochs=3, seed=7)
    assert (changed.epochs, changed.seed) == (3, 7)
    assert changed == recipe(name, epochs=3, seed=7)
    assert changed.max_lr == recipe(name).max_lr


def test_recipe_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown recipe 'slow': choose one of document, fast"):
        recipe("slow")
