"""A folder of images, decoded once: `<class>/<image>` files → one uint8 tensor, kept for the next time."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from netprune.errors import InputError

IMAGE_SIZE = 32
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """What a folder holds: images in the order of their sorted paths."""

    images: Tensor
    """uint8, `(N, 3, 32, 32)`, RGB."""
    labels: Tensor
    """int64, `(N,)`: index into `classes`."""
    classes: tuple[str, ...]
    """Folder names, sorted."""


def read_image_folder(folder: Path, cache_dir: Path) -> LabelledImages:
    """Decode every image below `folder`, or take the tensors kept from the last time.

    Images that are not 32×32 are scaled (shorter side to 32) and cropped at the centre. The cache in `cache_dir` is
    keyed by every file's path, size and time of change, so a changed folder is decoded again.

    Raises:
        InputError: if there are fewer than two classes, a class has no image, or an image cannot be decoded
            (the file is named).
    """
    paths, classes = _list_images(folder)
    stamps = [(path.relative_to(folder).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = hashlib.sha256(json.dumps([str(folder.resolve()), IMAGE_SIZE, stamps]).encode()).hexdigest()[:24]
    cache = cache_dir / f"images-{key}.safetensors"
    images = _from_cache(cache, len(paths))
    if images is None:
        images = _decode(paths)
        _to_cache(cache, images)
    index = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([index[path.relative_to(folder).parts[0]] for path in paths])
    return LabelledImages(images, labels, classes)


def _list_images(folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    classes = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
    found = {name: [p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES] for name in classes}
    if not any(found.values()):
        raise InputError(f"{folder} holds no images: put them under {folder}/<class>/ ({', '.join(SUFFIXES[:4])}, …).")
    if len(classes) < 2:
        raise InputError(f"{folder} holds one class only ({classes[0]}); a classifier needs at least two folders.")
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        raise InputError(f"{folder}/{empty[0]} holds no images: add some, or remove the folder.")
    return sorted((path for paths in found.values() for path in paths), key=str), classes


def _decode(paths: list[Path]) -> Tensor:
    # PIL lets go of the interpreter's lock while it decodes, so threads help
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        arrays = list(pool.map(_decode_one, paths, chunksize=256))
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def _decode_one(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    from PIL import Image, ImageOps

    size = (IMAGE_SIZE, IMAGE_SIZE)
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a readable image ({error}): mend or remove it.") from None
    return np.asarray(image if image.size == size else ImageOps.fit(image, size, Image.Resampling.BILINEAR))


def _from_cache(cache: Path, count: int) -> Tensor | None:
    if not cache.exists():
        return None
    try:
        with safe_open(cache, framework="pt") as file:
            images: Tensor = file.get_tensor("images")
    except (SafetensorError, OSError):
        return None  # a damaged cache is decoded anew and replaced
    return images if len(images) == count else None


def _to_cache(cache: Path, images: Tensor) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent, prefix=".decoding-") as scratch:
            save_file({"images": images}, Path(scratch) / cache.name)
            os.replace(Path(scratch) / cache.name, cache)
    except OSError as error:
        raise InputError(
            f"cannot keep decoded images in {cache.parent} ({error.strerror}): choose another data_dir."
        ) from None
