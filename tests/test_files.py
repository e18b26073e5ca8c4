"""Files that are there whole or not at all."""

import os
import stat

import pytest

from netprune.errors import InputError
from netprune.files import copy_whole, user_path, write_whole


def test_write_whole_replaces_an_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.file"
    path.write_bytes(b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "seen", "message"),
    [
        (OSError(28, "No space left on device"), InputError, "No space left"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_write_whole_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error, seen, message):
    path = tmp_path / "a.file"
    path.write_bytes(b"old")

    def fail(*_):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(seen, match=message):
        write_whole(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a" * 300, "cannot look up a+ .File name too long.: name another"), ("~nosuchuser/x", "write the whole path")],
)
def test_user_path_that_cannot_be_looked_up_is_refused_in_one_sentence(text, message):
    with pytest.raises(InputError, match=message):
        user_path(text)


def test_user_path_in_a_folder_that_may_not_be_entered_is_refused(monkeypatch):
    def forbid(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", forbid)  # root may enter any
        with pytest.raises(InputError, match=r"cannot look up /private/x \(Permission denied\)"):
            user_path("/private/x")


def test_user_path_of_the_home_folder_is_whole(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/there") == tmp_path / "there"


def test_write_whole_into_no_folder_says_which_file(tmp_path):
    with pytest.raises(InputError, match=r"cannot write .*none/a\.file: No such file or directory"):
        write_whole(tmp_path / "none" / "a.file", b"new")


def test_write_whole_is_readable_by_those_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        write_whole(tmp_path / "a.file", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.file").stat().st_mode) == 0o644


def test_copy_whole_copies_every_byte(tmp_path):
    (tmp_path / "a.file").write_bytes(os.urandom(3_000_000))
    copy_whole(tmp_path / "a.file", tmp_path / "b.file")
    assert (tmp_path / "a.file").read_bytes() == (tmp_path / "b.file").read_bytes()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here to be full")
def test_write_whole_on_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch):
    path = tmp_path / "a.file"
    path.write_bytes(b"old")
    scratch = tmp_path / f".a.file-{os.getpid()}"
    scratch.symlink_to("/dev/full")  # what is written there meets the kernel's own "no space left"
    with pytest.raises(InputError, match="No space left on device"):
        write_whole(path, b"new" * 100_000)
    assert path.read_bytes() == b"old"


def test_copy_whole_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "a.file").write_bytes(b"new")
    (tmp_path / "b.file").write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="No space left"):
        copy_whole(tmp_path / "a.file", tmp_path / "b.file")
    assert (tmp_path / "b.file").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.file", "b.file"]
