"""A folder of images, decoded once: `<class>/<image>` files → one uint8 tensor, kept for the next time."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netprune.errors import InputError
from netprune.memory import fits

IMAGE_SIZE, LEAST_SIZE, LARGEST_SIZE = 32, 8, 1024
"""Side of images in pixels: what is taken if nothing is said, and what may be asked for."""
SIXTEEN_BITS = 2**16 - 1
BITS_A_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0
"""Tags of a TIFF, and a value of the second."""
DECODING = 3
"""Changes with what decoding gives, so that what is kept from before is not taken."""
DECODED_BYTES = 4096 * 3 * IMAGE_SIZE**2
"""Of decoded images that are in memory at once."""
THREADED_BYTES = 16 * 1024
"""Size of a mean file from which threads decode: smaller ones take less time than handing the lock on."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """What a folder holds: images in the order of their sorted paths."""

    images: Tensor
    """uint8, `(N, 3, S, S)`, RGB; a mapping of the cache's file, which is read where it is looked at."""
    labels: Tensor
    """int64, `(N,)`: index into `classes`."""
    classes: tuple[str, ...]
    """Folder names, sorted."""
    on_disk: bool = False
    """The images would fill the memory: they are to stay in the cache's file, and be read from there as they are
    used."""


def check_image_size(image_size: int) -> None:
    """Refuse a side of images outside 8 to 1024 pixels.

    Raises:
        InputError: naming the range.
    """
    if not LEAST_SIZE <= image_size <= LARGEST_SIZE:
        raise InputError(f"image_size is {image_size}; it must be from {LEAST_SIZE} to {LARGEST_SIZE} pixels.")


def read_image_folder(folder: Path, cache_dir: Path, image_size: int = IMAGE_SIZE) -> LabelledImages:
    """Decode every image below `folder`, or take the tensors kept from the last time.

    Images that are not S×S, S being `image_size` pixels, are scaled (shorter side to S) and cropped at the centre. The
    cache in `cache_dir` is keyed by S and every file's path, size and time of change, so a changed folder is decoded
    again. Decoding takes little memory, however many images there are, and what is not used is not read into memory.

    Files and folders whose names begin with a dot are passed over. Links to classes and images are followed only to
    where they stay below `folder`, so that a folder that came from somewhere cannot have other files of this machine
    read.

    Raises:
        InputError: if there are fewer than two classes, a class has no image, an image cannot be decoded (the file is
            named), a link leads nowhere, out of the folder or from within a class to a folder, or the size is outside
            8 to 1024.
    """
    check_image_size(image_size)
    with readable():
        paths, classes = _list_images(folder)
        stamps = [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = hashlib.sha256(json.dumps([DECODING, str(folder.resolve()), image_size, stamps]).encode()).hexdigest()[:24]
    cache = cache_dir / f"images-{key}.npy"
    shape = (len(paths), 3, image_size, image_size)
    stored = _from_cache(cache, shape)
    if stored is None:
        worth = sum(size for _, size, _ in stamps) >= THREADED_BYTES * len(paths)
        _decode(paths, cache, shape, threads=os.cpu_count() or 1 if worth else 1)
        stored = np.load(cache, mmap_mode="c")
    on_disk = not fits(stored.nbytes, torch.device("cpu"))
    index = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([index[path.relative_to(folder).parts[0]] for path in paths])
    return LabelledImages(torch.from_numpy(stored), labels, classes, on_disk)


def _list_images(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    shown = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    check_links(folder, [entry for entry in shown if not entry.is_file()])
    classes = tuple(sorted(entry.name for entry in shown if entry.is_dir()))
    for name in classes:
        if os.fsencode(name) != name.encode(errors="replace"):  # no page, figure or terminal can show it
            raise InputError(f"{folder} has a class whose name is no UTF-8, {name!a}: rename its folder.")
    found = {name: _images_below(folder, name) for name in classes}
    if not any(found.values()):
        raise InputError(f"{folder} holds no images: put them under {folder}/<class>/ ({', '.join(SUFFIXES[:4])}, …).")
    if len(classes) < 2:
        raise InputError(f"{folder} holds one class only ({classes[0]}); a classifier needs at least two folders.")
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        raise InputError(f"{folder}/{empty[0]} holds no images: add some, or remove the folder.")
    return sorted((path for paths in found.values() for path in paths), key=str), classes


def _images_below(folder: Path, name: str) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder / name, onerror=_raise):
        # not what notebooks and file managers keep for themselves
        folders[:] = [entry for entry in folders if not entry.startswith(".")]
        linked = [Path(place, entry) for entry in folders if Path(place, entry).is_symlink()]
        if linked:
            raise InputError(f"{linked[0]} is a link to a folder: put the folder itself in its place.")
        paths = [Path(place, entry) for entry in files if not entry.startswith(".")]
        found += [path for path in paths if path.suffix.lower() in SUFFIXES]
    check_links(folder, found)
    return found


@contextmanager
def readable() -> Iterator[None]:
    """Within the body, what may not be looked at is refused by name: images that are left out in silence would make
    another data set."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot read {error.filename} ({error.strerror}): mend its permissions, or remove it."
        ) from None


def _raise(error: OSError) -> None:
    raise error


def check_links(folder: Path, entries: list[Path]) -> None:
    """Refuse those of `entries` that are links to nowhere or to what is not below `folder`.

    Raises:
        InputError: naming the link.
    """
    root = folder.resolve()
    for link in filter(Path.is_symlink, entries):
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError):  # the latter for a loop
            raise InputError(f"{link} is a link that leads nowhere: mend or remove it.") from None
        if not target.is_relative_to(root):
            raise InputError(f"{link} is a link that leads out of {folder}: put what it leads to in its place.")


def _decode(paths: list[Path], cache: Path, shape: tuple[int, ...], threads: int) -> None:
    """Decode into the cache's file, whole or not at all, as many images at a time as fit into `DECODED_BYTES`."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    at_once = max(1, DECODED_BYTES // math.prod(shape[1:]))
    decode = functools.partial(_decode_one, image_size=shape[-1])
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent, prefix=".decoding-") as scratch:
            # written, not mapped: a full disk is then an error, and no signal that ends the process
            with (Path(scratch) / cache.name).open("wb") as file, ThreadPoolExecutor(threads) as pool:
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(paths), at_once):
                    part = paths[start : start + at_once]
                    # PIL lets go of the interpreter's lock while it decodes, so threads help
                    decoded = np.stack(list(pool.map(decode, part) if threads > 1 else map(decode, part)))
                    file.write(decoded.transpose(0, 3, 1, 2).tobytes())
            os.replace(Path(scratch) / cache.name, cache)
    except OSError as error:
        raise InputError(
            f"cannot keep decoded images in {cache.parent} ({error.strerror}): choose another data_dir."
        ) from None


def _decode_one(path: Path, image_size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    from PIL import Image, ImageOps

    size = (image_size, image_size)
    try:
        with Image.open(path) as opened:
            image = _eight_bits(opened).convert("RGB")
    except Exception as error:  # of many kinds: PIL takes what a damaged file says for what it should be
        raise InputError(f"{path} is not a readable image ({error}): mend or remove it.") from None
    return np.asarray(image if image.size == size else ImageOps.fit(image, size, Image.Resampling.BILINEAR))


def _eight_bits(image: Any) -> Any:
    """PIL cuts grey values of more than 8 bits off at 255: those of up to 16 are scaled, and wider ones are refused."""
    from PIL import Image

    if image.mode not in ("F", "I") and not image.mode.startswith("I;"):
        return image
    values, largest, tags = np.asarray(image), SIXTEEN_BITS, getattr(image, "tag_v2", {})  # the last of a TIFF alone
    if tags:
        largest = 2 ** max(tags.get(BITS_A_SAMPLE, (1,))) - 1
    if image.mode == "F" or largest > SIXTEEN_BITS or values.min() < 0 or values.max() > largest:
        raise ValueError("its grey values are not of 8 or 16 bits")
    scaled = np.round(values / (largest / 255)).astype(np.uint8)
    return Image.fromarray(255 - scaled if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else scaled)


def _from_cache(cache: Path, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | None:
    try:
        images = np.load(cache, mmap_mode="c")
    except (ValueError, OSError, EOFError):
        return None  # there is none; or it is damaged, and is decoded anew and replaced
    return images if images.shape == shape and images.dtype == np.uint8 else None
