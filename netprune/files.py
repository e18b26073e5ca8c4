"""Files that are there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from netprune.errors import InputError

CHUNK = 2**20


def user_path(text: str | Path) -> Path:
    """A path as the user typed it, with the home folder for a `~`; there need not be anything.

    Raises:
        InputError: if it cannot be looked up: a name that is too long, a folder that may not be entered, a user that is
            not known.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except OSError as error:
        raise InputError(f"cannot look up {text} ({error.strerror}): name another path, or mend its folder.") from None
    except RuntimeError:
        raise InputError(f"cannot look up {text}: no home folder is known for this ~; write the whole path.") from None
    return path


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all: one that is there already survives a failed write.

    Raises:
        InputError: if it cannot be written: no such folder, no permission, no space left.
    """
    with _replacing(Path(path)) as file:
        file.write(data)


def copy_whole(source: str | Path, target: str | Path) -> None:
    """Copy a file whole or not at all: a target that is there already survives a failed copy.

    Raises:
        InputError: if it cannot be read or written.
    """
    with _opened(Path(source)) as original, _replacing(Path(target)) as file:
        shutil.copyfileobj(original, file, CHUNK)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place once it is on the disk."""
    # not by the process's number, which is that of others in other containers
    scratch = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with scratch.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        _remove(scratch)
        raise InputError(f"cannot write {path}: {error.strerror}.") from None
    except BaseException:
        _remove(scratch)
        raise


def _remove(scratch: Path) -> None:
    with suppress(OSError):  # what kept it from being written may keep it from being removed, or it is not there
        scratch.unlink()


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Within the body no other process of this machine is inside for the same path; the lock dies with its holder.

    Args:
        path: a file for the lock alone; it is made, and stays.
    """
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
