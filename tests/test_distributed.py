"""Training in two processes: the gradients of one, equal weights in both, and an end for both."""

import copy
import io
import os
import socket
import time
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
import torch
import torch.multiprocessing
from torch import nn

from netprune import distributed
from netprune.callbacks import Callbacks
from netprune.compute import Format
from netprune.distributed import ENDED, Team, launched
from netprune.errors import DivergedError, InputError
from netprune.loader import steps_per_epoch
from netprune.masks import apply_masks, make_masks
from netprune.models import Architecture, build_model
from netprune.recipes import TrainConfig, recipe
from netprune.training import Held, train
from netprune.weights import prunable_weights, state_digest, weights_digest

PATIENCE = timedelta(seconds=60)
# 72 images are batches of 23, 23, 23 and 3: the shares differ, and the last batch is too small to be shared. Clipping
# gradients before they are averaged would give others
UNEVEN = TrainConfig(epochs=3, batch_size=23, optimizer="sgd", max_lr=0.05, grad_clip=0.02, label_smoothing=0.1, seed=4)
STILL = TrainConfig(epochs=2, batch_size=12, max_lr=1e-9, weight_decay=0.0, seed=5)
ALL_TOGETHER = recipe(
    "fast",
    epochs=4,
    batch_size=12,
    grad_clip=0.1,
    ema=0.8,
    distillation=0.3,
    format=Format(bf16=True, channels_last=True),
)
FAILURES = {
    "process 1 failed: ValueError: boom": ValueError("boom"),
    "process 1 failed: no such thing.": InputError("no such thing."),
    ENDED: KeyboardInterrupt(),
}
"""What the first process is told → what is raised in the second."""


def without_batch_norm():
    """A network whose gradient is a mean over images, so that shares can be added up exactly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(96, 3)
        )


class Idle(nn.Module):
    """A network with a parameter that has no part in what it gives."""

    def __init__(self):
        super().__init__()
        self.used, self.idle = without_batch_norm(), nn.Parameter(torch.ones(2))

    def forward(self, images):
        return self.used(images)


def net10():
    return build_model(Architecture(name="net10", num_classes=3, width=2), seed=0)


def halved():
    network = net10()
    apply_masks(network, halves(network))
    return network


def halves(network):
    return make_masks(network, dict.fromkeys(prunable_weights(network), 0.5))


def nothing(_):
    return Held()


def masks_and_teacher(network):
    return Held(masks=halves(network), teacher=net10())


TRAININGS = {
    "uneven": (without_batch_norm, UNEVEN, nothing),
    "still": (net10, STILL, nothing),
    "idle": (Idle, UNEVEN, nothing),
    "all together": (halved, ALL_TOGETHER, masks_and_teacher),
    "diverging": (net10, TrainConfig(epochs=2, batch_size=16, max_lr=1e37), nothing),
}
"""Name → what makes the network, the recipe, and what makes of the network that which is held."""
LEARNED = [name for name in TRAININGS if name != "diverging"]


@dataclass
class Seen:
    """What one process saw of one training."""

    results: list = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    """A digest of the parameters after every step."""
    checks: list = field(default_factory=list)
    digest: str = ""
    state: dict = field(default_factory=dict)
    error: Exception | None = None


def observed(name, dataset, resume=None, snapshots=None):
    """One training as it looks from here."""
    make, config, hold = TRAININGS[name]
    seen, network = Seen(), make()

    def on_step(done, _):
        seen.steps.append(done)
        seen.weights.append(state_digest(dict(network.named_parameters())))

    def on_epoch(_, snapshot):
        if snapshots is not None:
            snapshots.append(through_a_file(snapshot()))

    def on_check(_, evaluation):
        seen.checks.append(evaluation)

    told = Callbacks(on_epoch=on_epoch, on_step=on_step, on_check=on_check, checks=(0.3,))
    try:
        seen.results = train(network, dataset, config, held=hold(network), callbacks=told, resume=resume)
    except InputError as error:
        seen.error = error
    seen.digest, seen.state = weights_digest(network), copy.deepcopy(network.state_dict())
    return seen


def through_a_file(snapshot):
    file = io.BytesIO()
    torch.save(snapshot, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(dataset, team):
    """A training with dropout and an average, and the same from its first process's snapshot after two epochs."""
    snapshots = []
    whole = observed("all together", dataset, snapshots=snapshots)
    return whole, observed("all together", dataset, resume=team.from_first(lambda: snapshots[1]))


def agreed(team):
    """What the ways to agree give, by name."""

    def first_no():
        raise InputError("the first says no")

    def last_no():
        with team.together():
            if not team.first:
                raise InputError("the last says no")

    found = {
        "mean": team.mean(torch.tensor([1.0, 3.0]) * (team.rank + 1)).tolist(),
        "gathered": team.gathered(f"from {team.rank}"),
        "from first": team.from_first(lambda: f"made in {team.rank}"),
    }
    for name, refuse in (("first refuses", lambda: team.from_first(first_no)), ("last refuses", last_no)):
        try:
            refuse()
        except InputError as error:
            found[name] = str(error)
    return found


def equalised(team):
    """A network with other weights and statistics in each process, made equal."""
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for tensor in (*network.parameters(), network[1].running_mean, network[1].running_var):
            tensor.fill_(1.0 + team.rank)
        network[1].num_batches_tracked.fill_(7 + team.rank)
    network.register_buffer("mask", torch.full((2,), torch.finfo(torch.float32).min))
    team.equalise(network)
    return copy.deepcopy(network.state_dict())


def ended_by(failure, rank, dataset):
    """Raise the failure in the second process's third step; what ended this one, in words, and its last wait."""
    start = time.monotonic()

    def on_step(done, _):
        nonlocal start
        start = time.monotonic()
        if rank == 1 and done == 3:
            raise failure

    try:
        with distributed.joined(PATIENCE):
            train(net10(), dataset, TrainConfig(epochs=1000, batch_size=16), callbacks=Callbacks(on_step=on_step))
    except BaseException as error:
        return type(error).__name__, str(error), time.monotonic() - start
    return None


def work(rank, ports, folder, dataset):
    """One of two processes: all that is looked at below, in one start of them; `folder/RANK.pt` holds what it saw."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0]), "GLOO_SOCKET_IFNAME": "lo"}
    with distributed.joined(PATIENCE) as team:
        seen = {name: observed(name, dataset) for name in TRAININGS if name != "all together"}
        seen["resumed"] = resumed(dataset, team)
        seen["all together"] = seen["resumed"][0]
        seen |= {"agreed": agreed(team), "equalised": equalised(team)}
    seen["after"] = distributed.team()
    seen["ended"] = []
    for port, failure in zip(ports[1:], FAILURES.values(), strict=True):
        os.environ["MASTER_PORT"] = str(port)
        seen["ended"].append(ended_by(failure, rank, dataset))
    torch.save(seen, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def both(tiny_dataset, tmp_path_factory):
    """What the first and the second process saw; processes that hang are killed."""
    folder, ports = tmp_path_factory.mktemp("both"), [free_port() for _ in range(1 + len(FAILURES))]
    started = torch.multiprocessing.spawn(work, (ports, str(folder), tiny_dataset), nprocs=2, join=False)
    end = time.monotonic() + 300
    try:
        while not started.join(timeout=1):
            assert time.monotonic() < end, "the two processes hang"
    finally:
        for process in started.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_train_without_batch_norm_in_two_processes_has_the_weights_of_one(both, tiny_dataset):
    alone, seen = observed("uneven", tiny_dataset), both[0]["uneven"]
    assert len(alone.results) == len(seen.results) == 3
    for ours, theirs in zip(seen.results, alone.results, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours.val.loss == pytest.approx(theirs.val.loss, rel=1e-4)
        assert ours.learning_rate == theirs.learning_rate
    for key, value in alone.state.items():
        torch.testing.assert_close(seen.state[key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", LEARNED)
def test_train_in_two_processes_has_the_steps_of_one_and_equal_weights_after_each(both, name):
    first, second = (seen[name] for seen in both)
    config = TRAININGS[name][1]
    assert first.steps == second.steps == list(range(1, config.epochs * steps_per_epoch(72, config.batch_size) + 1))
    assert first.weights == second.weights
    assert len(set(first.weights)) == len(first.steps)
    assert first.digest == second.digest  # running statistics too


@pytest.mark.parametrize("name", LEARNED)
def test_train_in_two_processes_tells_both_the_same_evaluations(both, name):
    first, second = (seen[name] for seen in both)
    assert [(r.val, r.train_loss, r.learning_rate) for r in first.results] == [
        (r.val, r.train_loss, r.learning_rate) for r in second.results
    ]
    assert first.checks == second.checks
    assert len(first.checks) == 1


def test_train_in_two_processes_keeps_running_statistics_of_all_images(both, tiny_dataset):
    # of the first layer of a network that stays as it is: deeper ones see what the shares' normalisation has made
    alone, seen = observed("still", tiny_dataset).state, both[0]["still"].state
    torch.testing.assert_close(seen["conv1.1.running_mean"], alone["conv1.1.running_mean"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["conv1.1.running_var"], alone["conv1.1.running_var"], rtol=0.05, atol=0.0)
    assert int(seen["conv1.1.num_batches_tracked"]) == int(alone["conv1.1.num_batches_tracked"]) == 12


def test_train_in_two_processes_with_an_idle_parameter_trains_the_others_as_without_it(both):
    for seen in both:
        idle, alone = seen["idle"].state, seen["uneven"].state
        assert torch.equal(idle.pop("idle"), torch.ones(2))
        assert all(torch.equal(idle[f"used.{name}"], alone[name]) for name in alone)


def test_train_in_two_processes_holds_masks_exactly(both):
    network = net10()
    network.load_state_dict(both[1]["all together"].state)
    for weight in prunable_weights(network).values():
        assert int((weight == 0).sum()) == round(0.5 * weight.numel())


def test_train_resumed_in_two_processes_equals_the_uninterrupted_training(both):
    (whole, again), (_, in_second) = (seen["resumed"] for seen in both)
    assert again.digest == in_second.digest == whole.digest
    assert again.steps == whole.steps[len(whole.steps) // 2 :]


def test_train_that_diverges_in_two_processes_raises_in_both(both):
    assert all(isinstance(seen["diverging"].error, DivergedError) for seen in both)


def test_train_of_which_one_process_fails_ends_in_the_other_at_once_and_says_why(both):
    first, second = (seen["ended"] for seen in both)
    assert [ended[:2] for ended in first] == [("ElsewhereError", message) for message in FAILURES]
    assert [ended[:2] for ended in second] == [(type(error).__name__, str(error)) for error in FAILURES.values()]
    assert all(seconds < 20 for _, _, seconds in first)  # far from PATIENCE


def test_team_agrees_on_means_values_and_errors(both):
    for seen in both:
        assert seen["agreed"] == {
            "mean": [1.5, 4.5],
            "gathered": ["from 0", "from 1"],
            "from first": "made in 0",
            "first refuses": "the first says no",
            "last refuses": "the last says no",
        }


def test_equalise_averages_running_statistics_and_takes_the_rest_from_the_first(both):
    for seen in both:
        state = seen["equalised"]
        assert int(state.pop("1.num_batches_tracked")) == 7
        assert (state.pop("mask") == torch.finfo(torch.float32).min).all(), "their sum is not finite"
        means = {name: value.unique().tolist() for name, value in state.items()}
        averaged = ("1.running_mean", "1.running_var")
        assert means == {name: [1.5] if name in averaged else [1.0] for name in means}


def test_joined_leaves_no_process_group_behind(both):
    assert [seen["after"] for seen in both] == [Team()] * 2


def test_team_alone_agrees_with_itself():
    team, network = Team(), nn.Linear(2, 2)
    assert team.wrapped(network, torch.contiguous_format, torch.ones(2, 2)) is network
    assert torch.equal(team.mean(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))
    assert team.gathered(3) == [3]
    assert team.from_first(lambda: 4) == 4
    assert int(equalised(team)["1.num_batches_tracked"]) == 7
    with pytest.raises(RuntimeError, match="own"), team.united():
        raise RuntimeError("of its own")


def test_launched_reads_the_environment_of_torchrun():
    here = launched({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert (here.rank, here.size, here.local_rank) == (5, 8, 1)
    assert not here.alone
    assert not here.first


@pytest.mark.parametrize(
    "environment", [{}, {"RANK": "0"}, {"WORLD_SIZE": "4"}, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}]
)
def test_joined_without_others_is_alone_and_opens_no_group(monkeypatch, environment):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with distributed.joined() as team:
        assert team.alone
        assert distributed.team() == Team()


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("one", "2"), ("0", "0"), ("0", "")])
def test_launched_with_an_environment_that_makes_no_sense_is_refused(rank, size):
    with pytest.raises(InputError, match="start by torchrun"):
        launched({"RANK": rank, "WORLD_SIZE": size})


def test_joined_without_an_address_says_to_use_torchrun(monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = r"the 2 processes cannot be joined \(.*MASTER_ADDR.*start them by torchrun"
    with pytest.raises(InputError, match=message), distributed.joined():
        pass
