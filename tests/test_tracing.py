"""Running from the middle: bit for bit what the whole network gives, or the whole network."""

import copy
import weakref

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from netprune.tracing import PrefixReuse, WholePasses, reuse_prefix
from netprune.weights import prunable_weights, weights_digest


class Parts(nn.Module):
    """What the small networks below are made of; each has a `forward` of its own, and most leave something unused."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 6, 1)
        self.norm, self.relu, self.drop = nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.fc = nn.Linear(6, 3)
        for tensor in (self.norm.weight, self.norm.running_var):
            nn.init.uniform_(tensor, 0.5, 2)
        for tensor in (self.norm.bias, self.norm.running_mean):
            nn.init.normal_(tensor)

    def head(self, x):
        return self.fc(self.drop(x.mean((2, 3))))


class Chain(Parts):
    def forward(self, x):
        return self.head(self.relu(self.conv3(self.relu(self.norm(self.conv2(self.relu(self.conv1(x))))))))


class SumInPlace(Parts):
    def forward(self, x):
        x = self.conv1(x)
        y = self.conv2(x)
        y += x
        y *= 2
        z = self.conv3(y)
        y -= z
        return self.head(y)


class SumIntoWhatIsReadBefore(Parts):
    def forward(self, x):
        x = self.conv1(x)
        y = self.conv2(x)
        x += y
        return self.head(self.conv3(x) + x)


class ReluModuleInPlace(Parts):
    def forward(self, x):
        x = self.conv1(x)
        y = self.relu(x)  # x is changed too
        return self.head(self.relu(self.conv2(y)) + x)


class BranchReadsBeforeTheReluModule(Parts):
    def forward(self, x):
        x = self.conv1(x)
        before = self.conv2(x)
        self.relu(x)
        return self.head(before + self.conv3(x))


class ReluFunctionInPlace(Parts):
    def forward(self, x):
        x = self.conv1(x)
        before = self.conv2(x)
        F.relu(x, inplace=True)
        return self.head(before + self.conv3(x) + x)


class InPlaceByPosition(Parts):
    def forward(self, x):
        x = self.conv1(x)
        y = F.leaky_relu(x, 0.1, True)
        return self.head(self.conv2(y) + F.hardtanh(self.conv3(x), -0.5, 0.5, True) - x)


class MethodsInPlace(Parts):
    def forward(self, x):
        x = self.conv1(x)
        before = self.conv2(x)
        x.add_(before)
        x.mul_(0.5).clamp_(min=-0.1)
        torch.relu_(before)
        return self.head(self.conv3(x) + before)


class OperandIsItself(Parts):
    def forward(self, x):
        x = self.conv1(x)
        x.mul_(x)
        y = self.conv2(x)
        y.add_(y)
        return self.head(y + x)


class BranchReadsBeforeTheChange(Parts):
    def forward(self, x):
        x = self.conv1(x)
        before = self.conv2(x)
        x.mul_(-1)
        after = self.conv2(x)
        x.add_(1)
        return self.head(before * 2 + after + self.conv3(x))


class SharedModule(Parts):
    def forward(self, x):
        return self.head(self.conv2(self.relu(self.conv3(self.conv2(self.conv1(x))))))


class TiedWeights(Parts):
    def __init__(self):
        super().__init__()
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv3.weight = self.conv2.weight

    def forward(self, x):
        x = self.conv2(self.conv1(x))
        return self.head(self.conv3(self.norm(x)))


class WeightsInFunctions(Parts):
    def forward(self, x):
        x = F.conv2d(self.conv1(x), self.conv2.weight.flip(3), self.conv2.bias, padding=1)
        x = F.conv2d(x, 2 * self.conv3.weight)
        return F.linear(x.amax((2, 3)), self.fc.weight) + self.fc(x.mean((2, 3)))


class ParallelBranches(Parts):
    def forward(self, x):
        shared = self.relu(self.conv1(x))
        left, right = self.conv2(shared), self.conv3(shared)
        return self.head(torch.cat([self.norm(left), right.sigmoid()], 2))


class BranchesOfTheImages(Parts):
    def __init__(self):
        super().__init__()
        self.side = nn.Conv2d(3, 6, 1, bias=False)

    def forward(self, x):
        return self.head(self.conv3(self.norm(self.conv1(x)).relu()) + self.side(x))


class DefaultArgument(Parts):
    def forward(self, x, scale=2.0):
        return self.head(self.conv2(self.conv1(x) * scale)) + scale


class ShapesOfTheBatch(Parts):
    def forward(self, x):
        x = self.conv1(x)
        flat = x.view(x.size(0), 6, -1)
        return self.fc(self.conv2(x).flatten(2).mean(2) + flat.mean(2) * x.shape[0])


class SumIntoThePrefix(Parts):
    def __init__(self):
        super().__init__()
        self.conv3 = None

    def forward(self, x):
        x = self.conv1(x)
        x.add_(self.conv2(x))
        return self.head(x)


class VariableArguments(Parts):
    def forward(self, x, *_others, **_options):
        return self.head(self.conv2(self.conv1(x)))


class ChangesItsInput(Parts):
    def forward(self, x):
        x.sub_(0.5)
        return self.head(self.conv2(self.conv1(x)) + x.mean())


class WritesIntoAnArgument(Parts):
    def __init__(self):
        super().__init__()
        self.conv2 = self.conv3 = None

    def forward(self, x):
        x = self.conv1(x).mean((2, 3))
        return torch.add(x[:, :3].contiguous(), self.fc(x), out=x[:, :3].contiguous())


class WritesIntoThePrefix(WritesIntoAnArgument):
    def forward(self, x):
        x = self.conv1(x).mean((2, 3))
        y = x[:, :3].contiguous()
        return torch.add(y, self.fc(x), out=y)


class AliasThatAnEmptyLayerHides(Parts):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, bias=False)
        self.conv2 = self.conv3 = None

    def forward(self, x):
        x = self.conv1(x)
        x.flatten(2).mul_(2)  # twice nothing is nothing, and without its weights the head sees nothing of x
        return self.head(x)


TRACEABLE = (
    Chain,
    SumInPlace,
    SumIntoWhatIsReadBefore,
    ReluModuleInPlace,
    BranchReadsBeforeTheReluModule,
    ReluFunctionInPlace,
    InPlaceByPosition,
    MethodsInPlace,
    OperandIsItself,
    BranchReadsBeforeTheChange,
    SharedModule,
    TiedWeights,
    WeightsInFunctions,
    ParallelBranches,
    BranchesOfTheImages,
    DefaultArgument,
    ShapesOfTheBatch,
)


class Branching(Parts):
    def forward(self, x):
        x = self.conv1(x)
        return self.head(self.conv2(x) if x.sum() > 0 else self.conv3(x))


class BranchingOnTheBatch(Parts):
    def forward(self, x):
        x = self.conv1(x)
        return self.head(self.conv2(x) if len(x) > 3 else self.conv3(x))


class LoopOverTheBatch(Parts):
    def forward(self, x):
        return torch.stack([self.head(self.conv2(self.conv1(image[None])))[0] for image in x])


class CountsItsCalls(Parts):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.head(self.conv2(self.conv1(x))) * self.calls


class DrawsAConstant(Parts):
    def forward(self, x):
        return self.head(self.conv2(self.conv1(x)) * torch.rand(6, 1, 1))


class DrawsNoise(Parts):
    def forward(self, x):
        return self.head(self.conv2(self.conv1(x)) + torch.randn_like(x[:, :1]))


class AsksForTheGradMode(Parts):
    def forward(self, x):
        return self.head(self.conv1(x)) * (3.0 if torch.is_grad_enabled() else 1.0)


class AliasByName(Parts):
    def forward(self, x):
        x = self.conv1(x)
        same = x
        x += self.conv2(x)
        return self.head(self.conv3(x) + same)


class AliasByView(Parts):
    def forward(self, x):
        x = self.conv1(x)
        x.flatten(2).mul_(2)
        return self.head(self.conv2(x))


class AliasByDropout(Parts):
    def forward(self, x):
        x = self.conv1(x)
        y = F.relu(self.drop(x), inplace=True)  # in eval mode, dropout hands on its input itself
        return self.head(self.conv2(y) + x)


def build(kind, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind()


def images(count, seed=0, size=8):
    return torch.randn((count, 3, size, size), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_equals_whole_passes(model, runner, batches, steps=(1, 2)):
    """Every layer without each of its weights, or each second one, each batch twice: the bits of a whole pass."""
    whole = copy.deepcopy(model).eval()
    ours, theirs = prunable_weights(runner.model), prunable_weights(whole)
    dense = [whole(batch.clone()) for batch in batches]
    visited, effect = [], 0
    for layer, rest in runner.stages([batch.clone() for batch in batches]):
        visited.append(layer)
        weight = ours[layer].clone()
        for step in steps:
            for one in (ours[layer], theirs[layer]):
                one.copy_(weight).view(-1)[::step] = 0
            expected = [whole(batch.clone()) for batch in batches]
            effect += not torch.equal(expected[0], dense[0])
            for i in (*reversed(range(len(batches))), *range(len(batches))):
                assert torch.equal(rest(i), expected[i]), (layer, step, i)
            for one in (ours[layer], theirs[layer]):
                one.copy_(weight)
        assert all(torch.equal(rest(i), outputs) for i, outputs in enumerate(dense)), layer
    assert sorted(visited) == sorted(ours)
    assert effect


@pytest.mark.parametrize("kind", TRACEABLE)
def test_reuse_prefix_equals_the_whole_network_bit_for_bit(kind):
    model = build(kind)
    runner = reuse_prefix(model, images(4))
    assert isinstance(runner, PrefixReuse), runner.reason
    assert runner.reason == ""
    assert_equals_whole_passes(model, runner, [images(5, seed=1), images(2, seed=2)])


@pytest.mark.parametrize(
    "kind",
    [
        SumIntoThePrefix,
        VariableArguments,
        ChangesItsInput,
        WritesIntoAnArgument,
        WritesIntoThePrefix,
        AliasThatAnEmptyLayerHides,
    ],
)
def test_reuse_prefix_is_right_or_takes_whole_passes(kind):
    model = build(kind)
    runner = reuse_prefix(model, images(4))
    assert_equals_whole_passes(model, runner, [images(5, seed=1), images(2, seed=2)])


@pytest.mark.parametrize("kind", TRACEABLE)
def test_prefix_reuse_without_its_trial_is_right_too(kind):
    model = build(kind)
    assert_equals_whole_passes(model, PrefixReuse(copy.deepcopy(model).eval()), [images(3)])


def test_reuse_prefix_of_net10_equals_the_whole_network(tiny_net):
    runner = reuse_prefix(tiny_net, images(4, size=32))
    assert isinstance(runner, PrefixReuse), runner.reason
    assert_equals_whole_passes(tiny_net, runner, [images(6, seed=1, size=32), images(1, seed=2, size=32)])


def test_reuse_prefix_of_torchvisions_resnet_equals_the_whole_network():
    model = build(lambda: torchvision.models.resnet18(weights=None, num_classes=3))
    runner = reuse_prefix(model, images(2, size=32))
    assert isinstance(runner, PrefixReuse), runner.reason
    assert_equals_whole_passes(model, runner, [images(2, seed=1, size=32)], steps=(2,))


@pytest.mark.parametrize("kind", [Branching, BranchingOnTheBatch, LoopOverTheBatch])
def test_reuse_prefix_of_what_cannot_be_traced_takes_whole_passes(kind):
    model = build(kind)
    runner = reuse_prefix(model, images(4))
    assert isinstance(runner, WholePasses)
    assert runner.reason.startswith("the network cannot be traced (")
    assert "\n" not in runner.reason
    assert len(runner.reason) > len("the network cannot be traced ()")
    assert_equals_whole_passes(model, runner, [images(5, seed=1), images(2, seed=2)])


@pytest.mark.parametrize(
    "kind", [CountsItsCalls, DrawsAConstant, DrawsNoise, AsksForTheGradMode, AliasByName, AliasByView, AliasByDropout]
)
def test_reuse_prefix_of_what_fools_the_tracer_takes_whole_passes(kind):
    with torch.random.fork_rng(devices=[]):
        runner = reuse_prefix(build(kind), images(4))
    assert isinstance(runner, WholePasses)
    assert runner.reason.startswith("the traced network differs from the network itself at ")


@pytest.mark.parametrize("kind", [AsksForTheGradMode, AliasByName, AliasByView, AliasByDropout])
def test_whole_passes_equal_the_whole_network(kind):
    model = build(kind)
    assert_equals_whole_passes(model, reuse_prefix(model, images(4)), [images(5, seed=1), images(2, seed=2)])


@pytest.mark.parametrize("kind", [Chain, ReluFunctionInPlace, Branching, AliasByView])
def test_reuse_prefix_leaves_the_model_as_it_is(kind):
    model = build(kind)
    model.train()
    model.norm.eval()
    digest, modes, parameters = weights_digest(model), [m.training for m in model.modules()], list(model.parameters())
    runner = reuse_prefix(model, images(4))
    with torch.no_grad():
        for _, rest in runner.stages([images(2)]):
            rest(0)
        for weight in prunable_weights(runner.model).values():
            weight.zero_()
    assert weights_digest(model) == digest
    assert [module.training for module in model.modules()] == modes
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert model.relu.inplace
    assert not any(module.training for module in runner.model.modules())


@pytest.mark.parametrize("kind", [Chain, ReluModuleInPlace, Branching, AliasByDropout, ChangesItsInput])
def test_reuse_prefix_leaves_its_images_as_they_are(kind):
    shown, batch = images(4), images(3, seed=1)
    before = shown.clone(), batch.clone()
    runner = reuse_prefix(build(kind), shown)
    with torch.no_grad():
        for _, rest in runner.stages([batch]):
            rest(0)
    assert torch.equal(shown, before[0])
    assert torch.equal(batch, before[1])


def count_calls(runner, batches, visits):
    """How often each prunable module of the runner's own network is called while every layer is visited."""
    calls = dict.fromkeys(prunable_weights(runner.model), 0)

    def counter(layer):
        def hook(*_):
            calls[layer] += 1

        return hook

    for layer in calls:
        runner.model.get_submodule(layer.removesuffix(".weight")).register_forward_hook(counter(layer))
    with torch.no_grad():
        for _, rest in runner.stages(batches):
            for _ in range(visits):
                for i in range(len(batches)):
                    rest(i)
    return list(calls.values())


def test_prefix_reuse_runs_what_comes_before_a_layer_once_for_a_batch():
    batches, visits = [images(2), images(3), images(1)], 4
    found = count_calls(reuse_prefix(build(Chain), images(2)), batches, visits)
    # conv1, conv2, conv3, fc: the j-th runs in the visits to itself and to the j − 1 before it, and once densely
    assert found == [3 * visits * 1 + 3, 3 * visits * 2 + 3, 3 * visits * 3 + 3, 3 * visits * 4]
    whole = count_calls(WholePasses(build(Chain).eval(), "to compare"), batches, visits)
    assert whole == [3 * visits * 4] * 4


def test_prefix_reuse_runs_no_branch_that_does_not_depend_on_the_layer():
    found = count_calls(reuse_prefix(build(ParallelBranches), images(2)), [images(2)], visits=5)
    # conv1 and the two branches, each of which is left alone while the other is visited
    assert found[0] == 5 + 1
    assert sorted(found[1:3]) == [10 + 1, 10 + 1]
    assert found[3] == 20


def test_prefix_reuse_comes_to_the_layers_in_the_networks_order():
    runner = reuse_prefix(build(Chain), images(2))
    with torch.no_grad():
        assert [layer for layer, _ in runner.stages([images(2)])] == [
            "conv1.weight",
            "conv2.weight",
            "conv3.weight",
            "fc.weight",
        ]


def test_prefix_reuse_forgets_on_the_way_what_nobody_needs_any_more():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Sigmoid(), nn.Flatten(), nn.Linear(36, 3))
    runner = reuse_prefix(model, images(2))
    outputs, alive = [], []
    runner.model[0].register_forward_hook(lambda *call: outputs.append(weakref.ref(call[2])))
    runner.model[4].register_forward_hook(lambda *_: alive.append(outputs[-1]() is not None))
    with torch.no_grad():
        assert len(list(runner.stages([images(2)]))) == 2
    assert alive == [False]


def test_prefix_reuse_forgets_what_nobody_needs_any_more():
    runner = reuse_prefix(build(Chain), images(2))
    outputs = []
    runner.model.conv1.register_forward_hook(lambda *call: outputs.append(weakref.ref(call[2])))
    with torch.no_grad():
        for layer, _ in runner.stages([images(2)]):
            if layer == "conv2.weight":
                assert len(outputs) == 1
        assert outputs[0]() is None
