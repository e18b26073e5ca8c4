"""Folders of images: their order, their cache, and folders that cannot be used."""

import functools
import os
import shutil
import struct
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from netprune import image_folder
from netprune.data import load_dataset
from netprune.errors import InputError
from netprune.image_folder import read_image_folder


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def make_folder(folder, *, classes=("cat", "dog"), count=3, seed=0):
    """`count` random PNGs a class; returns them by path."""
    made = {}
    for i, name in enumerate(classes):
        for j in range(count):
            path = folder / name / f"{j}.png"
            made[path] = pixels(1000 * seed + 100 * i + j)
            save(path, made[path])
    return made


@pytest.fixture
def no_decoding(monkeypatch):
    """Call it to make any decoding from now on a failure."""
    return lambda: monkeypatch.setattr(image_folder, "_decode", lambda *_, **__: pytest.fail("decoded"))


def test_read_image_folder_gives_images_in_the_order_of_sorted_paths(tmp_path):
    names = ["dog/b.png", "dog/a.png", "cat/2.png", "cat/10.png", "cat/sub/x.png", "Ant/z.PNG"]
    made = {name: pixels(i) for i, name in enumerate(names)}
    for name, array in made.items():
        save(tmp_path / "in" / name, array)
    found = read_image_folder(tmp_path / "in", tmp_path / "cache")
    order = sorted(names)
    assert found.classes == ("Ant", "cat", "dog")
    assert found.images.dtype == torch.uint8
    assert np.array_equal(found.images, np.stack([made[name].transpose(2, 0, 1) for name in order]))
    assert found.labels.tolist() == [found.classes.index(name.split("/")[0]) for name in order]
    assert found.labels.dtype == torch.int64


@pytest.mark.parametrize("threaded", [False, True])
def test_read_image_folder_decodes_large_files_only_in_threads_to_the_same_images(tmp_path, monkeypatch, threaded):
    made = make_folder(tmp_path / "in")
    decode, threads = image_folder._decode_one, set()

    def noted(path, image_size):
        threads.add(threading.current_thread() is threading.main_thread())
        return decode(path, image_size)

    monkeypatch.setattr(image_folder, "_decode_one", noted)
    size = min(path.stat().st_size for path in made)
    monkeypatch.setattr(image_folder, "THREADED_BYTES", size if threaded else 2 * size)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    found = read_image_folder(tmp_path / "in", tmp_path / "cache")
    assert threads == {not threaded}
    assert np.array_equal(found.images, np.stack([array.transpose(2, 0, 1) for array in made.values()]))


def test_read_image_folder_other_files_are_passed_over(tmp_path):
    make_folder(tmp_path / "in")
    (tmp_path / "in" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "in" / "README.md").write_text("no class")
    assert len(read_image_folder(tmp_path / "in", tmp_path / "cache").images) == 6


def test_read_image_folder_second_time_takes_the_cache(tmp_path, no_decoding):
    make_folder(tmp_path / "in")
    first = read_image_folder(tmp_path / "in", tmp_path / "cache")
    no_decoding()
    second = read_image_folder(tmp_path / "in", tmp_path / "cache")
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    assert first.classes == second.classes


@pytest.mark.parametrize("change", ["content", "added", "removed"])
def test_read_image_folder_that_changed_is_decoded_again(tmp_path, change):
    made = make_folder(tmp_path / "in")
    read_image_folder(tmp_path / "in", tmp_path / "cache")
    path = tmp_path / "in" / "cat" / "1.png"
    if change == "content":
        made[path] = pixels(99)
        save(path, made[path])
        os.utime(path, ns=(1, 1))
    elif change == "added":
        made[path.with_name("9.png")] = pixels(99)
        save(path.with_name("9.png"), pixels(99))
    else:
        del made[path]
        path.unlink()
    found = read_image_folder(tmp_path / "in", tmp_path / "cache")
    assert np.array_equal(found.images, np.stack([made[path].transpose(2, 0, 1) for path in sorted(made)]))


def test_read_image_folder_damaged_cache_is_replaced(tmp_path, no_decoding):
    made = make_folder(tmp_path / "in")
    read_image_folder(tmp_path / "in", tmp_path / "cache")
    (cache,) = (tmp_path / "cache").iterdir()
    cache.write_bytes(cache.read_bytes()[:-100])
    again = read_image_folder(tmp_path / "in", tmp_path / "cache")
    assert np.array_equal(again.images, np.stack([made[path].transpose(2, 0, 1) for path in sorted(made)]))
    no_decoding()
    assert torch.equal(read_image_folder(tmp_path / "in", tmp_path / "cache").images, again.images)


def test_read_image_folder_leaves_nothing_but_the_cache_behind(tmp_path):
    make_folder(tmp_path / "in")
    read_image_folder(tmp_path / "in", tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]


def test_read_image_folder_cache_that_cannot_be_kept_names_data_dir(tmp_path):
    make_folder(tmp_path / "in")
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(InputError, match="data_dir"):
        read_image_folder(tmp_path / "in", tmp_path / "cache")


@pytest.mark.parametrize(("width", "height"), [(64, 64), (48, 96), (100, 40), (8, 8), (31, 33)])
def test_read_image_folder_other_size_is_scaled_about_its_centre(tmp_path, width, height):
    make_folder(tmp_path / "in", count=1)
    rows, columns = np.mgrid[:height, :width]
    # a disc about the centre, a quarter of the shorter side in radius
    disc = np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2) < min(width, height) / 4
    save(tmp_path / "in" / "cat" / "disc.png", np.repeat(disc[..., None] * np.uint8(255), 3, axis=2))
    image = read_image_folder(tmp_path / "in", tmp_path / "cache").images[1].float() / 255
    assert image.shape == (3, 32, 32)
    weight = image[0] / image[0].sum()
    position = torch.arange(32.0)
    assert (weight.sum(1) @ position).item() == pytest.approx(15.5, abs=0.6)
    assert (weight.sum(0) @ position).item() == pytest.approx(15.5, abs=0.6)
    assert image[0].sum().item() == pytest.approx(np.pi * 8**2, rel=0.2)


def test_read_image_folder_grey_image_becomes_rgb(tmp_path):
    make_folder(tmp_path / "in", count=1)
    grey = pixels(7)[..., 0]
    save(tmp_path / "in" / "cat" / "grey.png", grey)
    image = read_image_folder(tmp_path / "in", tmp_path / "cache").images[1]
    assert np.array_equal(image, np.stack([grey] * 3))


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1", "CMYK"])
def test_read_image_folder_other_colour_modes_become_rgb(tmp_path, mode):
    make_folder(tmp_path / "in", count=1)
    path = tmp_path / "in" / "cat" / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.fromarray(pixels(3)).convert(mode).save(path)
    assert read_image_folder(tmp_path / "in", tmp_path / "cache").images.shape == (3, 3, 32, 32)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_read_image_folder_grey_image_of_16_bits_is_scaled(tmp_path, suffix):
    make_folder(tmp_path / "in", count=1)
    ramp = np.linspace(0, 65535, 1024).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "in" / "cat" / f"x.{suffix}")
    image = read_image_folder(tmp_path / "in", tmp_path / "cache").images[1].numpy()
    assert np.abs(image - ramp / 257).max() <= 0.5 + 1e-9


def tiff(bits, photometric, data):
    """16×16 grey pixels, as few tags as there can be."""
    tags = {256: (3, 16), 257: (3, 16), 258: (3, bits), 259: (3, 1), 262: (3, photometric), 273: (4, 0), 277: (3, 1)}
    tags |= {278: (3, 16), 279: (4, len(data))}
    tags[273] = (4, 8 + 2 + 12 * len(tags) + 4)
    listed = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<HH" if kind == 3 else "<I", value, *[0] * (kind == 3))
        for tag, (kind, value) in tags.items()
    )
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + listed + bytes(4) + data


@pytest.mark.parametrize(
    ("bits", "photometric", "data", "grey"),
    [
        (16, 1, np.full(256, 0x4000, "<u2").tobytes(), 64),
        (16, 0, np.full(256, 0x4000, "<u2").tobytes(), 191),
        (8, 0, bytes([64]) * 256, 191),
        (12, 1, bytes([0x7F, 0xF7, 0xFF]) * 128, 127),
    ],
    ids=["16 bits", "16 bits, white is zero", "8 bits, white is zero", "12 bits"],
)
def test_read_image_folder_grey_tiff_is_as_bright_as_its_tags_say(tmp_path, bits, photometric, data, grey):
    make_folder(tmp_path / "in", count=1)
    (tmp_path / "in" / "cat" / "x.tif").write_bytes(tiff(bits, photometric, data))
    image = read_image_folder(tmp_path / "in", tmp_path / "cache").images[1]
    assert (image == grey).all()


def test_read_image_folder_grey_tiff_of_32_bits_is_refused_however_small_its_values(tmp_path):
    make_folder(tmp_path / "in", count=1)
    (tmp_path / "in" / "cat" / "x.tif").write_bytes(tiff(32, 1, np.full(256, 100, "<u4").tobytes()))
    with pytest.raises(InputError, match=r"x\.tif is not a readable image \(its grey values are not of 8 or 16 bits\)"):
        read_image_folder(tmp_path / "in", tmp_path / "cache")


@pytest.mark.parametrize("values", [np.float32(0.5), np.int32(70_000), np.int32(-1)])
def test_read_image_folder_grey_image_of_more_bits_is_refused_by_name(tmp_path, values):
    make_folder(tmp_path / "in", count=1)
    Image.fromarray(np.full((32, 32), values)).save(tmp_path / "in" / "cat" / "x.tif")
    with pytest.raises(InputError, match=r"x\.tif is not a readable image \(its grey values are not of 8 or 16 bits\)"):
        read_image_folder(tmp_path / "in", tmp_path / "cache")


def test_read_image_folder_without_images_says_where_they_go(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match=r"in holds no images: put them under .*in/<class>/"):
        read_image_folder(tmp_path / "in", tmp_path / "cache")


def test_read_image_folder_of_one_class_names_it(tmp_path):
    make_folder(tmp_path / "in", classes=("cat",))
    with pytest.raises(InputError, match=r"one class only.*cat.*two"):
        read_image_folder(tmp_path / "in", tmp_path / "cache")


def test_read_image_folder_with_an_empty_class_names_it(tmp_path):
    make_folder(tmp_path / "in")
    (tmp_path / "in" / "emu").mkdir()
    with pytest.raises(InputError, match="in/emu holds no images"):
        read_image_folder(tmp_path / "in", tmp_path / "cache")


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", None], ids=["empty", "text", "head", "cut"]
)
def test_read_image_folder_corrupt_image_is_named(tmp_path, content):
    make_folder(tmp_path / "in")
    path = tmp_path / "in" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:500] if content is None else content)
    with pytest.raises(InputError, match=r"in/dog/1\.png is not a readable image"):
        read_image_folder(tmp_path / "in", tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*"))


def test_read_image_folder_damaged_tiff_that_pil_raises_a_type_error_for_is_named(tmp_path):
    make_folder(tmp_path / "in")
    path = tmp_path / "in" / "dog" / "x.tif"
    save(path, pixels(0))
    data = bytearray(path.read_bytes())
    data[data.index((273).to_bytes(2, "little")) + 2] = 2  # the tag StripOffsets: text, it says
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"in/dog/x\.tif is not a readable image"):
        read_image_folder(tmp_path / "in", tmp_path / "cache")


def test_load_dataset_folder_without_train_says_so(tmp_path):
    (tmp_path / "in" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match="no train/ folder"):
        load_dataset(str(tmp_path / "in"), tmp_path)


def test_load_dataset_folder_without_test_holds_a_tenth_out_for_each(tmp_path):
    made = make_folder(tmp_path / "in" / "train", count=15)
    images = np.stack([made[path].transpose(2, 0, 1) for path in sorted(made, key=str)])
    dataset = load_dataset(str(tmp_path / "in"), tmp_path / "cache")
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0)).numpy()
    for part, index in ((dataset.val, order[:3]), (dataset.test, order[3:6]), (dataset.train, order[6:])):
        assert np.array_equal(part.images, images[index])
        assert part.labels.tolist() == (index >= 15).astype(int).tolist()
    assert dataset.classes == ("cat", "dog")


def test_load_dataset_folder_with_test_keeps_it_as_the_test_split(tmp_path):
    make_folder(tmp_path / "in" / "train", count=10)
    held = make_folder(tmp_path / "in" / "test", count=2, seed=1)
    dataset = load_dataset(str(tmp_path / "in"), tmp_path / "cache")
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [18, 2, 4]
    assert np.array_equal(dataset.test.images, np.stack([held[path].transpose(2, 0, 1) for path in sorted(held)]))
    assert dataset.test.labels.tolist() == [0, 0, 1, 1]


def test_load_dataset_folder_with_other_test_classes_names_the_difference(tmp_path):
    make_folder(tmp_path / "in" / "train")
    make_folder(tmp_path / "in" / "test", classes=("cat", "cow", "dog"))
    with pytest.raises(InputError, match="different classes: cow"):
        load_dataset(str(tmp_path / "in"), tmp_path / "cache")


def test_load_dataset_folder_is_copied_into_memory_once(tmp_path):
    make_folder(tmp_path / "in" / "train", count=20)
    make_folder(tmp_path / "in" / "test", count=5, seed=1)
    load_dataset(str(tmp_path / "in"), tmp_path / "cache", 128)
    tracemalloc.start()  # of arrays; torch's memory it does not see
    dataset = load_dataset(str(tmp_path / "in"), tmp_path / "cache", 128)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * dataset.train.images.nbytes
    kept = [part.images.clone() for part in (dataset.train, dataset.val, dataset.test)]
    for path in (tmp_path / "cache").iterdir():  # what is still read from there becomes black
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.write(bytes(size))
    for part, images in zip((dataset.train, dataset.val, dataset.test), kept, strict=True):
        assert images.any()
        assert torch.equal(part.images, images)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_load_dataset_folder_of_too_few_images_to_be_split_is_refused(tmp_path, count):
    make_folder(tmp_path / "in" / "train", count=count)
    with pytest.raises(InputError, match="too few images to be split into train, validation and test: add some"):
        load_dataset(str(tmp_path / "in"), tmp_path / "cache")


def test_load_dataset_folder_of_few_images_has_one_in_each_split(tmp_path):
    make_folder(tmp_path / "in" / "train", count=5)
    dataset = load_dataset(str(tmp_path / "in"), tmp_path / "cache")
    assert [len(part) for part in (dataset.train, dataset.val, dataset.test)] == [8, 1, 1]


def test_load_dataset_folder_with_val_keeps_all_of_train_for_training(tmp_path):
    folders = {part: make_folder(tmp_path / "in" / part, count=n, seed=n) for part, n in (("train", 6), ("val", 4))}
    stacked = {
        part: np.stack([made[path].transpose(2, 0, 1) for path in sorted(made, key=str)])
        for part, made in folders.items()
    }
    dataset = load_dataset(str(tmp_path / "in"), tmp_path / "cache")
    assert np.array_equal(dataset.train.images, stacked["train"])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).numpy()
    for part, index in ((dataset.test, order[:4]), (dataset.val, order[4:])):
        assert np.array_equal(part.images, stacked["val"][index])
        assert part.labels.tolist() == (index >= 4).astype(int).tolist()
    held = make_folder(tmp_path / "in" / "test", count=3, seed=1)
    with_test = load_dataset(str(tmp_path / "in"), tmp_path / "cache")
    assert np.array_equal(with_test.train.images, stacked["train"])
    assert np.array_equal(with_test.val.images, stacked["val"])
    assert np.array_equal(with_test.test.images, np.stack([held[p].transpose(2, 0, 1) for p in sorted(held, key=str)]))


@pytest.mark.parametrize("where", ["", "train", "train/cat", "train/cat/more"])
def test_load_dataset_folder_of_which_a_part_may_not_be_read_is_refused_by_name(tmp_path, monkeypatch, where):
    make_folder(tmp_path / "in" / "train")
    make_folder(tmp_path / "in" / "train" / "cat" / "more")
    closed, functions = os.fspath(tmp_path / "in" / where), {name: getattr(os, name) for name in ("scandir", "listdir")}

    def forbid(path, function):  # root may read any
        if os.fspath(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return functions[function](path)

    def stat(path, *rest, **options):
        if os.fspath(path).startswith(f"{closed}/") and not where:
            raise PermissionError(13, "Permission denied", closed)
        return os_stat(path, *rest, **options)

    os_stat = os.stat
    with monkeypatch.context() as patch:
        for name in functions:
            patch.setattr(os, name, functools.partial(forbid, function=name))
        patch.setattr(os, "stat", stat)
        with pytest.raises(InputError, match=rf"cannot read {closed} \(Permission denied\): mend its permissions"):
            load_dataset(str(tmp_path / "in"), tmp_path / "cache")


def test_read_image_folder_of_a_class_whose_name_is_no_utf_8_is_refused(tmp_path):
    make_folder(tmp_path / "in")
    (tmp_path / "in" / "cat").rename(os.fsdecode(os.fsencode(tmp_path / "in") + b"/caf\xe9"))
    with pytest.raises(InputError, match=r"a class whose name is no UTF-8, 'caf.*: rename its folder") as refused:
        read_image_folder(tmp_path / "in", tmp_path / "cache")
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("link", ["cat/linked.png", "horse"], ids=["image", "class"])
def test_read_image_folder_link_out_of_it_is_refused_by_name(tmp_path, link):
    make_folder(tmp_path / "in")
    outside = make_folder(tmp_path / "outside", classes=("a", "b"))
    (tmp_path / "in" / link).symlink_to(next(iter(outside)) if link.endswith("png") else tmp_path / "outside" / "a")
    with pytest.raises(InputError, match=rf"{link} is a link that leads out of .*in: put what it leads to"):
        read_image_folder(tmp_path / "in", tmp_path / "cache")


def test_read_image_folder_link_within_it_is_an_image_like_others(tmp_path):
    made = make_folder(tmp_path / "in")
    first = next(iter(made))
    (first.parent / "again.png").symlink_to(first)
    found = read_image_folder(tmp_path / "in", tmp_path / "cache")
    assert len(found.images) == 7
    assert sum(np.array_equal(image, made[first].transpose(2, 0, 1)) for image in found.images) == 2


@pytest.mark.parametrize("link", ["cat/linked.png", "horse"], ids=["image", "class"])
@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_read_image_folder_link_that_leads_nowhere_is_refused_by_name(tmp_path, link, target):
    make_folder(tmp_path / "in")
    path = tmp_path / "in" / link
    path.symlink_to(path if target == "itself" else tmp_path / "in" / "nowhere")
    with pytest.raises(InputError, match=rf"{link} is a link that leads nowhere: mend or remove it"):
        read_image_folder(tmp_path / "in", tmp_path / "cache")


def test_read_image_folder_link_to_a_folder_below_a_class_is_refused_by_name(tmp_path):
    make_folder(tmp_path / "in")
    (tmp_path / "in" / "cat" / "more").symlink_to(tmp_path / "in" / "dog")
    with pytest.raises(InputError, match=r"cat/more is a link to a folder: put the folder"):
        read_image_folder(tmp_path / "in", tmp_path / "cache")


@pytest.mark.parametrize("part", ["train", "test"])
def test_load_dataset_folder_whose_part_is_a_link_out_of_it_is_refused_by_name(tmp_path, part):
    for name in ("in/train", "in/test", "outside"):
        make_folder(tmp_path / name)
    shutil.rmtree(tmp_path / "in" / part)
    (tmp_path / "in" / part).symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match=rf"in/{part} is a link that leads out of .*in: put what it leads to"):
        load_dataset(str(tmp_path / "in"), tmp_path / "cache")


def test_load_dataset_folder_whose_parts_are_links_within_it_is_read(tmp_path):
    make_folder(tmp_path / "in" / "version2", count=6)
    (tmp_path / "in" / "train").symlink_to(tmp_path / "in" / "version2")
    make_folder(tmp_path / "in" / "test")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert len(load_dataset(str(tmp_path / "link"), tmp_path / "cache").test) == 6


def test_load_dataset_folder_whose_test_is_its_train_is_refused(tmp_path):
    make_folder(tmp_path / "in" / "train")
    (tmp_path / "in" / "test").symlink_to("train")
    with pytest.raises(InputError, match=r"in/test is the same folder as .*in/train: put other images there"):
        load_dataset(str(tmp_path / "in"), tmp_path / "cache")


def test_read_image_folder_what_is_hidden_is_passed_over(tmp_path):
    made = make_folder(tmp_path / "in")
    for name in (".ipynb_checkpoints/0.png", "cat/.ipynb_checkpoints/0.png", "cat/._0.png"):
        save(tmp_path / "in" / name, pixels(9))
    (tmp_path / "in" / "dog" / ".link").symlink_to(tmp_path)
    found = read_image_folder(tmp_path / "in", tmp_path / "cache")
    assert (len(found.images), found.classes) == (len(made), ("cat", "dog"))


@pytest.mark.parametrize("size", [8, 20, 48])
def test_read_image_folder_of_another_size_scales_each_image_to_it(tmp_path, size):
    made = make_folder(tmp_path / "in")
    images = read_image_folder(tmp_path / "in", tmp_path / "cache", size).images
    assert images.shape == (6, 3, size, size)
    for image, path in zip(images, sorted(made), strict=True):
        with Image.open(path) as opened:
            expected = np.asarray(opened.resize((size, size), Image.Resampling.BILINEAR))
        assert np.array_equal(image.permute(1, 2, 0), expected)


def test_read_image_folder_keeps_each_size_apart(tmp_path, no_decoding):
    make_folder(tmp_path / "in")
    sizes = {size: read_image_folder(tmp_path / "in", tmp_path / "cache", size).images for size in (32, 48)}
    no_decoding()
    for size, images in sizes.items():
        assert torch.equal(read_image_folder(tmp_path / "in", tmp_path / "cache", size).images, images)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_read_image_folder_decodes_as_much_at_once_as_fits(tmp_path, monkeypatch):
    made = make_folder(tmp_path / "in", count=5)
    whole = read_image_folder(tmp_path / "in", tmp_path / "whole", 16).images
    monkeypatch.setattr(image_folder, "DECODED_BYTES", 3 * 3 * 16**2)
    parts = read_image_folder(tmp_path / "in", tmp_path / "parts", 16).images
    assert torch.equal(parts, whole)
    assert len(parts) == len(made)


@pytest.mark.parametrize("size", [0, -32, 7, 1025])
def test_image_size_out_of_range_is_refused_with_the_range(tmp_path, size):
    make_folder(tmp_path / "in" / "train")
    for read in (read_image_folder, load_dataset):
        with pytest.raises(InputError, match=rf"image_size is {size}; it must be from 8 to 1024 pixels"):
            read(tmp_path / "in" / "train" if read is read_image_folder else str(tmp_path / "in"), tmp_path, size)


def test_load_dataset_folder_of_another_size_has_it_in_every_split(tmp_path):
    make_folder(tmp_path / "in" / "train", count=10)
    make_folder(tmp_path / "in" / "test", count=2, seed=1)
    dataset = load_dataset(str(tmp_path / "in"), tmp_path / "cache", 24)
    assert dataset.image_size == 24
    assert {part.images.shape[2:] for part in (dataset.train, dataset.val, dataset.test)} == {(24, 24)}
