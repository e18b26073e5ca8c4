"""The training command in two processes that torchrun starts: one run, one voice, one end."""

import sys

import pytest
import torch
from click.testing import CliRunner
from test_end_to_end import Store, copy_project, run

from netprune.compute import Format
from netprune.data import Dataset, load_dataset
from netprune.distributed import Team
from netprune.errors import InputError
from netprune.models import Architecture, build_model
from netprune.recipes import recipe
from netprune.training import train as train_alone
from sweeps import report, train
from sweeps.stages.data import DataRequest, agreed
from sweeps.stages.source import SourceRequest
from sweeps.stages.training import TrainRequest, run_training

TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "sweeps.train",
]
OPTIONS = {"dataset": "digits", "width": "4", "epochs": "8", "batch-size": "64", "max-lr": "0.02", "precision": "fp32"}
SMALL = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
RECIPE = recipe("document", epochs=8, batch_size=64, max_lr=0.02, format=Format(channels_last=True))
STEPS = 17
"""Of an epoch: 1,079 training images."""
WATCHED = '''
import os
from netprune.weights import state_digest
unwatched = apply_masks

def apply_masks(model, masks):
    """Write down the weights after every step; the second process fails in the step that it is told to."""
    unwatched(model, masks)
    rank = os.environ["RANK"]
    with open(f"steps-{rank}.txt", "a+") as file:
        file.write(state_digest(dict(model.named_parameters())) + "\\n")
        file.seek(0)
        if rank == "1" and len(file.readlines()) == int(os.environ.get("FAIL_AT", "0")):
            raise RuntimeError("boom")
'''


def torchrun(folder, *words, **more):
    """The command in two processes of one thread; what it wrote down of an earlier start is removed."""
    for path in folder.glob("steps-*.txt"):
        path.unlink()
    return run(folder, *TORCHRUN, *SMALL, *words, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", **more)


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """A folder of the project in which a training has failed in the second process, in its third epoch; its output."""
    folder = copy_project(tmp_path_factory.mktemp("project"))
    masks = folder / "netprune" / "masks.py"
    masks.write_text(masks.read_text() + WATCHED)
    return folder, torchrun(folder, FAIL_AT=str(2 * STEPS + 5))


@pytest.mark.slow
@pytest.mark.end_to_end
def test_torchrun_train_of_which_one_process_fails_is_a_failed_run_that_says_why(failed):
    folder, done = failed
    assert done.returncode != 0
    assert done.stderr.count("Error: process 1 failed: RuntimeError: boom") == 1
    assert "best epoch" not in done.stdout
    (found,) = Store(folder).runs("attributes.status = 'FAILED'")
    assert found.data.tags["error"] == "ElsewhereError: process 1 failed: RuntimeError: boom"
    assert Store(folder).artifacts(found, "checkpoints") == {"last.pt", "best.pt"}


@pytest.mark.slow
@pytest.mark.end_to_end
def test_torchrun_train_resumed_is_one_run_with_the_steps_and_the_accuracy_of_one_process(failed):
    folder, _ = failed
    done = torchrun(folder, "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best epoch") == 1
    assert "8 epochs on cpu in 2 processes" in done.stderr
    told = [line.split()[1] for line in done.stderr.splitlines() if line.startswith("epoch ")]
    assert told == [f"{epoch}/8" for epoch in range(3, 9)]

    first, second = ((folder / f"steps-{rank}.txt").read_text().split() for rank in range(2))
    assert first == second
    assert len(first) == len(set(first)) == 6 * STEPS

    store = Store(folder)
    assert len(store.runs()) == 2  # the failed one and this
    (found,) = store.runs("attributes.status = 'FINISHED'")
    assert found.data.params["train.processes"] == "2"
    assert store.artifacts(found, "checkpoints") == {"last.pt", "best.pt"}
    model = build_model(Architecture(name="net10", num_classes=10, width=4), seed=0)
    alone = train_alone(model, load_dataset("digits", folder), RECIPE)
    rates = store.client.get_metric_history(found.info.run_id, "learning_rate")
    # equal where there are as many steps
    assert {p.step: p.value for p in rates} == pytest.approx({r.epoch: r.learning_rate for r in alone})
    ours, theirs = found.data.metrics, alone[-1].val
    noise = (ours["val_accuracy_se"] ** 2 + theirs.accuracy_se**2) ** 0.5
    assert abs(ours["val_accuracy"] - theirs.accuracy) < 4 * noise


def test_training_with_batches_too_small_for_its_processes_is_refused_before_a_run_opens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = DataRequest(dataset="digits", data_dir=str(tmp_path))
    request = TrainRequest(data=data, source=SourceRequest(width=4), config=recipe("document", batch_size=3))
    with pytest.raises(InputError, match="batch_size is 3, and there are 2 processes; it must be at least 4"):
        run_training(request, Team(0, 2))
    assert list(tmp_path.iterdir()) == []


class OneOfTwo(Team):
    """One of two processes, of which the other says what it is told to."""

    other = None

    def gathered(self, value):
        return [value, type(self).other or value]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (("cuda", 72, "digest", False), "some processes have a GPU and some have none"),
        (("cpu", 71, "digest", False), "the processes find different images under tiny"),
        (("cpu", 72, "another", False), "the processes find different images under tiny"),
    ],
)
def test_data_that_differs_between_processes_is_refused(tiny_dataset, monkeypatch, other, message):
    monkeypatch.setattr(OneOfTwo, "other", other)
    monkeypatch.setattr(Dataset, "val_digest", lambda _: "digest")
    with pytest.raises(InputError, match=message):
        agreed(tiny_dataset, torch.device("cpu"), OneOfTwo(0, 2))


@pytest.mark.parametrize("streams", [False, True])
def test_data_that_one_process_streams_is_streamed_by_all(tiny_dataset, monkeypatch, streams):
    monkeypatch.setattr(OneOfTwo, "other", ("cpu", 72, tiny_dataset.val_digest(), streams))
    assert agreed(tiny_dataset, torch.device("cpu"), OneOfTwo(0, 2)).train.streamed == streams


@pytest.fixture
def second(monkeypatch, tmp_path):
    """This process is the second of two, as torchrun would say it; in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    yield
    assert list(tmp_path.iterdir()) == []  # no store


def test_command_of_one_process_is_refused_below_torchrun(second, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    result = CliRunner().invoke(report.main, [])
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: this command runs in one process: start it without torchrun, which is for sweeps.train.\n"
    )


@pytest.mark.parametrize(("command", "words", "code"), [(train, ["--epochs", "many"], 2), (report, [], 1)])
def test_command_in_any_process_but_the_first_is_refused_in_silence(second, command, words, code):
    result = CliRunner().invoke(command.main, words)
    assert (result.exit_code, result.output) == (code, "")
