"""On a GPU: what is computed there is what is computed on the CPU, and a seed repeats itself. Skipped without one."""

import copy
import io
import sys
from dataclasses import replace

import pytest
import torch
from test_end_to_end import Store, copy_project, run
from torch import nn

from netprune import training
from netprune.callbacks import Callbacks
from netprune.candidate import Subject, prune_candidate
from netprune.compute import Format, choose_compute
from netprune.data import Dataset, load_dataset
from netprune.evaluation import evaluate
from netprune.header import header_for
from netprune.loader import normalise, train_batches
from netprune.masks import make_masks
from netprune.memory import free_memory
from netprune.models import Architecture, build_model
from netprune.optimizers import orthogonalised
from netprune.packing import unpack
from netprune.precision import fit_to_device
from netprune.pruning import finetuning
from netprune.quantise import Values
from netprune.recalibration import recalibrate
from netprune.recipes import TrainConfig, recipe
from netprune.recording import recordable
from netprune.saliency import SALIENCIES
from netprune.scanner import ScanConfig, scan
from netprune.training import Held, train
from netprune.weights import prunable_weights, weights_digest

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

GPU = torch.device("cuda")
SHORT = TrainConfig(epochs=3, batch_size=16, seed=5)
BF16 = Format(bf16=True, channels_last=True)
LOADED = """
import mlflow, numpy
mlflow.set_tracking_uri("sqlite:///mlflow.db")
model = mlflow.pyfunc.load_model("models:/{0.name}/{0.version}")
print(numpy.asarray(model.predict(numpy.zeros((2, 3, 32, 32), dtype=numpy.float32))).shape)
"""
SPARSITY = {"conv2.0.weight": 0.5, "conv3.0.weight": 0.9}


@pytest.fixture(scope="module")
def on_gpu(tiny_dataset) -> Dataset:
    return tiny_dataset.to(GPU)


@pytest.fixture
def gpu_net(trained_net):
    return copy.deepcopy(trained_net).to(GPU)


def trained(model, dataset, config, **options):
    """A trained copy, as a digest."""
    model = copy.deepcopy(model).to(GPU)
    train(model, dataset, config, **options)
    return weights_digest(model)


def test_batches_on_a_gpu_are_those_of_the_cpu(tiny_dataset, on_gpu):
    theirs, ours = (
        list(train_batches(dataset, 20, torch.Generator().manual_seed(1))) for dataset in (tiny_dataset, on_gpu)
    )
    assert all(images.is_cuda and labels.is_cuda for images, labels in ours)
    for (a, b), (c, d) in zip(theirs, ours, strict=True):
        torch.testing.assert_close(c.cpu(), a, rtol=1e-6, atol=1e-6)
        assert torch.equal(d.cpu(), b)


@pytest.mark.parametrize("streamed", [False, True])
def test_train_on_a_gpu_learns_and_leaves_the_generators_alone(tiny_dataset, tiny_net, streamed):
    dataset = replace(tiny_dataset, train=replace(tiny_dataset.train, streamed=streamed)).to(GPU)
    assert dataset.train.images.is_cuda != streamed
    net = tiny_net.to(GPU)
    torch.cuda.manual_seed(7)
    before, here = torch.cuda.get_rng_state(), torch.get_rng_state()
    results = train(net, dataset, TrainConfig(epochs=8, batch_size=8))
    assert results[-1].val.accuracy > 0.9
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), here)


@pytest.mark.parametrize("config", [SHORT, recipe("fast", epochs=3, batch_size=16)])
def test_train_on_a_gpu_in_fp32_by_one_seed_gives_identical_weights(on_gpu, tiny_net, config):
    config = replace(config, format=Format(channels_last=True))
    assert trained(tiny_net, on_gpu, config) == trained(tiny_net, on_gpu, config)


@pytest.mark.parametrize("name", ["document", "fast"])
@pytest.mark.parametrize("taught", [False, True])
def test_train_on_a_gpu_replayed_equals_launched(on_gpu, tiny_net, gpu_net, monkeypatch, name, taught):
    # 72 images: four batches of 16, and one of 8 that is not replayed
    config = recipe(name, epochs=3, batch_size=16, format=Format(channels_last=True), distillation=0.5 * taught)
    held = Held(masks=make_masks(tiny_net.to(GPU), SPARSITY), teacher=gpu_net if taught else None)
    calls = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: calls.append(graph) or replay(graph))
    replayed = trained(tiny_net, on_gpu, config, held=held)
    assert len(calls) == 3 * 3
    monkeypatch.setattr(training, "recordable", lambda *_: False)
    assert trained(tiny_net, on_gpu, config, held=held) == replayed
    assert len(calls) == 3 * 3


class Own(nn.Module):
    """A network that decides something on the host."""

    def __init__(self, net):
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, images):
        self.passes += 1
        return self.net(images)


def test_train_on_a_gpu_of_a_users_own_network_launches_every_pass(on_gpu, tiny_net):
    own = Own(tiny_net).to(GPU)
    train(own, on_gpu, SHORT)
    assert own.passes == 3 * (5 + 1)  # batches, and validation
    assert not recordable(own)
    assert recordable(tiny_net)
    tiny_net.conv1.register_forward_hook(lambda *_: None)
    assert not recordable(tiny_net)


@pytest.mark.parametrize("name", ["document", "fast"])
def test_train_on_a_gpu_resumed_from_a_file_equals_the_uninterrupted_training(on_gpu, tiny_net, name):
    config = recipe(name, epochs=3, batch_size=16, format=Format(channels_last=True))
    kept = {}

    def keep(result, snapshot):
        kept[result.epoch] = io.BytesIO()
        torch.save(snapshot(), kept[result.epoch])

    whole = trained(tiny_net, on_gpu, config, callbacks=Callbacks(on_epoch=keep))
    kept[2].seek(0)
    snapshot = torch.load(kept[2], weights_only=True, map_location="cpu")  # as the command reads it
    assert trained(tiny_net, on_gpu, config, resume=snapshot) == whole


def test_evaluate_on_a_gpu_is_close_to_the_cpu(tiny_dataset, on_gpu, trained_net, gpu_net):
    theirs, ours = evaluate(trained_net, tiny_dataset.val, tiny_dataset), evaluate(gpu_net, on_gpu.val, on_gpu)
    assert ours.loss == pytest.approx(theirs.loss, abs=0.01)
    assert ours.accuracy == pytest.approx(theirs.accuracy, abs=1.01 / len(on_gpu.val))


def test_recalibrate_on_a_gpu_is_close_to_the_cpu(tiny_dataset, on_gpu, trained_net, gpu_net):
    reference = copy.deepcopy(trained_net)
    recalibrate(reference, tiny_dataset)
    recalibrate(gpu_net, on_gpu)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(gpu_net.state_dict()[name].cpu(), value, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("shape", [(32, 288), (288, 32), (64, 64)])
def test_orthogonalised_on_a_gpu_is_close_to_the_cpu(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, expected = orthogonalised(matrix.to(GPU)).cpu(), orthogonalised(matrix)
    assert (found - expected).norm() / expected.norm() < 0.05  # bfloat16, five times over


@pytest.mark.parametrize("saliency", sorted(SALIENCIES))
def test_scan_on_a_gpu_is_close_to_the_cpu(tiny_dataset, on_gpu, trained_net, gpu_net, saliency):
    config = ScanConfig(sparsities=(0.4, 0.9, 1.0), max_se=0, precision="fp32")
    reference = scan(trained_net, tiny_dataset, config, saliency=SALIENCIES[saliency])
    found = scan(gpu_net, on_gpu, config, saliency=SALIENCIES[saliency])
    for ours, theirs in zip(found.curves, reference.curves, strict=True):
        assert ours.damage == pytest.approx(theirs.damage, abs=0.05)


def test_choose_compute_on_a_gpu_finds_a_way(on_gpu, gpu_net):
    way = choose_compute(gpu_net, normalise(on_gpu.val.images, on_gpu))
    assert not way.winograd
    assert way.batch_size > 0


def test_fit_to_device_on_a_gpu_in_bf16_leaves_the_network_alone(on_gpu, gpu_net):
    before = weights_digest(gpu_net)
    config, seconds = fit_to_device(gpu_net, on_gpu, SHORT, "bf16")
    assert config.format == BF16
    assert 0 < seconds < 60
    assert weights_digest(gpu_net) == before


@pytest.mark.parametrize("values", ["fp32", "int8", "codebook:4"])
def test_prune_candidate_on_a_gpu_recovers_as_on_the_cpu(tmp_path, values):
    digits = load_dataset("digits", tmp_path)
    architecture = Architecture(name="net10", num_classes=10, width=16)
    dense = build_model(architecture)
    train(dense, digits, recipe("fast", epochs=4, batch_size=64, format=Format(channels_last=True)))
    header = header_for(dense, digits, architecture)
    sparsity = dict.fromkeys(list(prunable_weights(dense))[1:-1], 0.8)
    config = finetuning(2, values=Values.parse(values))
    config = replace(config, finetune=replace(config.finetune, format=Format(channels_last=True)))
    told = Callbacks(on_check=lambda *_: None)
    theirs, _ = prune_candidate(Subject(dense, digits, header), sparsity, config, callbacks=told)
    ours, _ = prune_candidate(Subject(dense.to(GPU), digits.to(GPU), header), sparsity, config, callbacks=told)
    assert theirs.val.accuracy > 0.9
    assert ours.val.accuracy == pytest.approx(theirs.val.accuracy, abs=0.04)  # 359 images


@pytest.mark.parametrize("values", ["fp32", "fp16", "int8", "codebook:4"])
def test_prune_candidate_on_a_gpu_gives_a_file_that_loads_on_the_cpu_as_scored(
    tiny_dataset, on_gpu, gpu_net, tiny_header, values
):
    config = finetuning(2, values=Values.parse(values), batch_size=16)
    config = replace(config, finetune=replace(config.finetune, format=Format(channels_last=True)))
    header = replace(tiny_header, dense_digest=weights_digest(gpu_net))
    result, data = prune_candidate(Subject(gpu_net, on_gpu, header), SPARSITY, config)
    assert result.packed_bytes == len(data)
    loaded = evaluate(unpack(data).model, tiny_dataset.val, tiny_dataset)
    assert loaded.accuracy == pytest.approx(result.val.accuracy, abs=1.01 / len(on_gpu.val))
    again, same = prune_candidate(Subject(gpu_net, on_gpu, header), SPARSITY, config)
    assert (same, again.val) == (data, result.val)


def test_prune_candidate_gradual_on_a_gpu_ends_as_sparse_as_asked(on_gpu, gpu_net, tiny_header):
    config = finetuning(2, batch_size=16)
    config = replace(config, finetune=replace(config.finetune, gradual=0.5, ema=0.5, format=BF16))
    result, _ = prune_candidate(Subject(gpu_net, on_gpu, tiny_header), SPARSITY, config)
    assert result.measured["conv2.0.weight"] == pytest.approx(0.5, abs=0.01)


def test_free_memory_of_a_gpu_is_less_than_it_has():
    assert 0 < free_memory(GPU) < torch.cuda.get_device_properties(0).total_memory


@pytest.mark.end_to_end
def test_pipeline_on_a_gpu_registers_a_file_that_a_cpu_serves(tmp_path):
    folder = copy_project(tmp_path)
    small = ["--width", "4", "--epochs", "4", "--trials", "6", "--max-drop", "20"]
    done = run(folder, sys.executable, "-m", "sweeps.pipeline", *small)
    assert done.returncode == 0, done.stderr
    assert "epochs on cuda" in done.stderr
    (registered,) = Store(folder).client.search_model_versions()
    elsewhere = run(folder, sys.executable, "-c", LOADED.format(registered), CUDA_VISIBLE_DEVICES="")
    assert elsewhere.stdout.split() == ["(2,", "10)"], elsewhere.stderr


@pytest.mark.end_to_end
def test_search_on_a_gpu_with_two_workers_shares_its_trials(tmp_path):
    folder = copy_project(tmp_path)
    small = "--dataset digits --width 2 --batch-size 64 --epochs 4"
    assert run(folder, sys.executable, "-m", "sweeps.train", *small.split()).returncode == 0
    words = "--trials 8 --finetune-epochs 0.5 --max-drop 30 --workers 2 --confirm-epochs 1"
    done = run(folder, sys.executable, "-m", "sweeps.search_sparsity", *words.split())
    assert done.returncode == 0, done.stderr
    assert len(Store(folder).stage("trial")) == 8


@pytest.mark.end_to_end
def test_torchrun_on_a_gpu_of_one_process_trains_and_of_two_is_refused(tmp_path):
    folder = copy_project(tmp_path)
    words = ["--dataset", "digits", "--width", "2", "--batch-size", "64", "--epochs", "2"]
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    alone = run(folder, *runner, "1", "-m", "sweeps.train", *words)
    assert alone.returncode == 0, alone.stderr
    if torch.cuda.device_count() == 1:
        crowd = run(folder, *runner, "2", "-m", "sweeps.train", *words)
        assert crowd.returncode != 0
        assert "more processes than its 1 GPUs" in crowd.stderr
