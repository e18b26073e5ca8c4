"""Data sets: their split rule, their pixels, and what happens without a network."""

import itertools
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision

from netprune.data import Split, load_dataset, split_indices
from netprune.errors import InputError


@pytest.mark.parametrize("count", [10, 57, 1797, 50_000])
def test_split_indices_give_the_permutations_first_tenth_then_the_rest(count):
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()
    val, rest = split_indices(count, 0.1)
    assert np.array_equal(val, order[: count // 10])
    assert np.array_equal(rest, order[count // 10 :])


def test_split_indices_of_two_fractions_are_disjoint_and_cover_all():
    parts = split_indices(1797, 0.2, 0.2)
    assert [len(part) for part in parts] == [359, 359, 1079]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1797))


def test_split_indices_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    split_indices(100, 0.1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("count", [1, 7, 5000])
def test_split_digest_goes_by_images_and_labels_streamed_or_not(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 2, 2), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(count) % 10)
    digest = split.digest()
    assert len(digest) == 64
    assert Split(images.clone(), split.labels.clone()).digest() == digest
    assert replace(split, labels=(split.labels + 1) % 10).digest() != digest
    assert replace(split, images=255 - images).digest() != digest
    order = torch.randperm(count, generator=generator)
    pool = Split(images[order], split.labels[order], streamed=True)  # the same images, kept in another order
    assert pool.take(order.argsort()).digest() == digest


def test_load_dataset_unknown_name_is_refused_with_the_choices(tmp_path):
    with pytest.raises(InputError, match=r"'cifar11'.*cifar10.*digits.*train/"):
        load_dataset("cifar11", tmp_path)


def test_digits_are_scikit_learns_split_into_fifths(tmp_path):
    from sklearn.datasets import load_digits

    bunch, dataset = load_digits(), load_dataset("digits", tmp_path)
    parts = (dataset.val, dataset.test, dataset.train)
    assert [len(part) for part in parts] == [359, 359, 1079]
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0)).numpy()
    images, labels = (torch.cat([getattr(part, name) for part in parts]).numpy() for name in ("images", "labels"))
    assert np.array_equal(labels, bunch.target[order])
    assert images.shape == (1797, 3, 32, 32)
    assert images.dtype == np.uint8
    # every 4×4 square is one of scikit-learn's pixels, in each channel
    assert np.array_equal(images, np.kron(images[:, :, ::4, ::4], np.ones((4, 4), np.uint8)))
    assert (images == images[:, :1]).all()
    assert np.array_equal(np.rint(images[:, 0, ::4, ::4] * (16 / 255)), bunch.images[order])


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_load_dataset_built_in_of_another_size_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=rf"images of {name} are 32×32: image_size is for image folders"):
        load_dataset(name, tmp_path, 64)


def test_digits_are_not_to_be_mirrored(tmp_path):
    dataset = load_dataset("digits", tmp_path)
    assert not dataset.flip
    assert dataset.classes == tuple("0123456789")


def test_dataset_to_moves_the_splits_and_keeps_the_rest(tiny_dataset):
    changed = replace(tiny_dataset, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), flip=False)
    moved = changed.to(torch.device("meta"))
    assert {getattr(moved, part).images.device.type for part in ("train", "val", "test")} == {"meta"}
    assert {getattr(moved, part).labels.device.type for part in ("train", "val", "test")} == {"meta"}
    for name in ("name", "classes", "mean", "std", "flip"):
        assert getattr(moved, name) == getattr(changed, name), name


@pytest.mark.parametrize("what", ["pixel", "label", "mean"])
def test_val_digest_changes_with_what_a_scan_is_measured_on(tiny_dataset, what):
    images, labels = tiny_dataset.val.images.clone(), tiny_dataset.val.labels.clone()
    if what == "pixel":
        images[-1, 2, 31, 31] += 1
    elif what == "label":
        labels[0] = (labels[0] + 1) % 3
    mean = (0.0, 0.0, 0.0) if what == "mean" else tiny_dataset.mean
    changed = replace(tiny_dataset, val=Split(images, labels), mean=mean)
    assert changed.val_digest() != tiny_dataset.val_digest()


def test_val_digest_does_not_depend_on_train_and_test(tiny_dataset):
    changed = replace(tiny_dataset, train=tiny_dataset.test, test=tiny_dataset.train)
    assert changed.val_digest() == tiny_dataset.val_digest()


class FakeCifar10:
    """torchvision's class with 60 + 20 made-up images, present or not."""

    url = "http://127.0.0.1:9/cifar-10-python.tar.gz"
    present = True
    asked: list[bool]

    def __init__(self, root, train=True, download=False):  # noqa: ARG002
        type(self).asked.append(download)
        if download:
            self.download()
        if not type(self).present:
            raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")
        rng = np.random.default_rng(int(train))
        self.data = rng.integers(0, 256, (60 if train else 20, 32, 32, 3), dtype=np.uint8)
        self.targets = rng.integers(0, 10, len(self.data)).tolist()

    def download(self):
        type(self).present = True


@pytest.fixture
def cifar10(monkeypatch):
    """torchvision's CIFAR10 as a fake that is there; no look-up goes through a proxy."""
    fake = type("CIFAR10", (FakeCifar10,), {"asked": []})
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    monkeypatch.setenv("no_proxy", "*")
    return fake


@pytest.fixture
def listening():
    """A local host's socket: it takes connections, and nothing reads them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def refusal(tmp_path):
    """The message of cifar10 that cannot be had, which must come within ten seconds."""
    start = time.monotonic()
    with pytest.raises(InputError) as refused:
        load_dataset("cifar10", tmp_path)
    assert time.monotonic() - start < 10
    message = str(refused.value)
    assert "dataset=digits" in message
    assert "data_dir" in message
    assert str(tmp_path) in message
    return message


def test_cifar10_holds_out_the_first_tenth_and_keeps_its_own_test_split(cifar10, tmp_path):
    dataset = load_dataset("cifar10", tmp_path)
    pool, held = cifar10(tmp_path), cifar10(tmp_path, train=False)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).numpy()
    for part, images, labels in (
        (dataset.val, pool.data[order[:6]], np.array(pool.targets)[order[:6]]),
        (dataset.train, pool.data[order[6:]], np.array(pool.targets)[order[6:]]),
        (dataset.test, held.data, held.targets),
    ):
        assert np.array_equal(part.images, images.transpose(0, 3, 1, 2))
        assert np.array_equal(part.labels, labels)
    assert len(dataset.classes) == 10
    assert dataset.flip


def test_cifar10_that_is_there_is_not_downloaded(cifar10, tmp_path, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("went to the network"))
    load_dataset("cifar10", tmp_path)
    assert cifar10.asked == [False, False]


def test_cifar10_absent_is_downloaded_into_data_dir(cifar10, tmp_path, monkeypatch):
    cifar10.present = False
    monkeypatch.setattr("netprune.cifar10._unreachable", lambda _: "")
    dataset = load_dataset("cifar10", tmp_path / "new" / "folder")
    assert len(dataset.train) == 54
    assert True in cifar10.asked
    assert (tmp_path / "new" / "folder").is_dir()


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no such host"), OSError("no route"), TimeoutError(), ConnectionResetError("reset")]
)
def test_cifar10_unreachable_is_refused_with_the_mend(cifar10, tmp_path, monkeypatch, error):
    cifar10.present = False

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    assert (str(error) or type(error).__name__) in refusal(tmp_path)


def test_cifar10_connection_refused_is_refused_with_the_mend(cifar10, tmp_path, listening):
    cifar10.present, port = False, listening.getsockname()[1]
    listening.close()
    cifar10.url = f"http://127.0.0.1:{port}/x.tar.gz"
    assert "refused" in refusal(tmp_path)


def test_cifar10_host_that_never_answers_is_given_up(cifar10, tmp_path, monkeypatch, listening):
    cifar10.present = False
    cifar10.url = f"http://127.0.0.1:{listening.getsockname()[1]}/x.tar.gz"
    monkeypatch.setattr("netprune.cifar10.PROBE_SECONDS", 0.3)
    start = time.monotonic()
    refusal(tmp_path)
    assert time.monotonic() - start < 3


def test_cifar10_name_look_up_that_hangs_is_given_up(cifar10, tmp_path, monkeypatch):
    # getaddrinfo heeds no timeout: the probe itself does not come back
    cifar10.present, done = False, threading.Event()
    monkeypatch.setattr("netprune.cifar10.PROBE_SECONDS", 0.2)

    def hang(*_, **__):
        done.wait(60)
        raise OSError("too late")

    monkeypatch.setattr(urllib.request, "urlopen", hang)
    try:
        assert "no answer" in refusal(tmp_path)
    finally:
        done.set()


def test_cifar10_host_that_speaks_no_http_is_refused_with_the_mend(cifar10, tmp_path, listening):
    cifar10.present = False
    cifar10.url = f"http://127.0.0.1:{listening.getsockname()[1]}/x.tar.gz"

    def answer():
        connection, _ = listening.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"* OK IMAP4 ready\r\n\r\n")

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        assert "no answer" not in refusal(tmp_path)
    finally:
        thread.join()


@pytest.mark.parametrize("error", [RuntimeError("File not found or corrupted."), OSError("disk full")])
def test_cifar10_download_that_breaks_is_refused_with_the_mend(cifar10, tmp_path, monkeypatch, error):
    cifar10.present = False
    monkeypatch.setattr("netprune.cifar10._unreachable", lambda _: "")

    def fail(_):
        raise error

    monkeypatch.setattr(cifar10, "download", fail)
    assert str(error) in refusal(tmp_path)


def test_parts_that_follow_each_other_go_over_every_image_before_one_comes_again(tiny_dataset):
    whole = tiny_dataset.train
    parts = [tiny_dataset.part(0.25, seed=3, after=0.25 * turn).train for turn in range(5)]
    found = sorted(image.sum().item() for part in parts[:4] for image in part.images)
    assert found == sorted(image.sum().item() for image in whole.images)
    assert torch.equal(parts[4].images, parts[0].images)
    assert torch.equal(parts[0].images, tiny_dataset.part(0.25, seed=3).train.images)
    assert len(tiny_dataset.part(0.5, seed=3, after=0.75).train) == len(whole) // 2


def test_tiny_dataset_splits_share_no_image(tiny_dataset):
    flat = {part: getattr(tiny_dataset, part).images.flatten(1) for part in ("train", "val", "test")}
    for one, other in itertools.combinations(flat.values(), 2):
        assert torch.cdist(one.float(), other.float()).min() > 0
