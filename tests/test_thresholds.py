"""One threshold over the scores of many layers."""

from __future__ import annotations

import pytest
import torch

from netprune.masks import keep_mask
from netprune.rules import global_saliency, kept_norm, lamp_threshold
from netprune.saliency import SALIENCIES
from netprune.thresholds import global_threshold
from netprune.weights import prunable_weights


def reference(scores, density):
    """The same by one mask over all layers' scores in one tensor."""
    kept = torch.split(keep_mask(torch.cat(list(scores.values())), 1 - density), [s.numel() for s in scores.values()])
    return {
        name: min(1 - int(part.sum()) / part.numel(), 1 - 1 / part.numel())
        for name, part in zip(scores, kept, strict=True)
    }


@pytest.mark.parametrize("density", [1e-9, 0.003, 0.1, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_global_threshold_equals_one_mask_over_all_layers(seed, density):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 400, (9,), generator=generator).tolist()
    scores = {str(i): torch.rand(size, generator=generator) * 10**i for i, size in enumerate(sizes)}
    if seed % 2:  # few values, many ties
        scores = {name: (each * 3).round() for name, each in scores.items()}
    found = global_threshold({name: each.sort().values for name, each in scores.items()}, density)
    assert found == pytest.approx(reference(scores, density), abs=1e-12)


def test_global_threshold_of_layers_of_two_types_compares_their_values():
    half = torch.tensor([0.2, 0.3], dtype=torch.half)  # 0.3 there is 0.30004882 in fp32
    scores = {"a": torch.tensor([0.1, 0.30004882]), "b": half}
    assert global_threshold(scores, 0.25) == {"a": 0.5, "b": 0.5}
    assert global_threshold({name: scores[name] for name in "ba"}, 0.25) == {"b": 0.5, "a": 0.5}


@pytest.mark.parametrize("rule", [kept_norm, lamp_threshold])
def test_rule_with_a_memo_gives_what_it_gives_without_and_sorts_once(tiny_net, rule, monkeypatch):
    memo, asked = {}, [0.7, 0.2, 0.01]
    first = next(iter(prunable_weights(tiny_net)))
    others = [name for name in prunable_weights(tiny_net) if name != first]
    plain = [rule(tiny_net, density) for density in asked], rule(tiny_net, 0.1, others)
    found = [rule(tiny_net, density, memo=memo) for density in asked]
    monkeypatch.setattr("netprune.rules.score", lambda _, weights, __: dict.fromkeys(weights, None))
    assert (found, rule(tiny_net, 0.1, others, memo)) == plain  # nothing new to be scored: no None is sorted
    assert {name for _, name in memo} == prunable_weights(tiny_net).keys()


def test_memo_of_one_criterion_is_not_taken_for_another(tiny_net):
    memo = {}
    for name in ("magnitude", "lamp", "norm_loss"):
        found = global_saliency(tiny_net, 0.1, SALIENCIES[name], memo=memo)
        assert found == global_saliency(tiny_net, 0.1, SALIENCIES[name])
