"""Files that are there whole or not at all."""

import os
import resource
import stat
from concurrent.futures import ThreadPoolExecutor

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


def test_write_whole_of_more_than_may_be_written_leaves_the_old_file_and_says_so(tmp_path):
    path = tmp_path / "a.file"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # the kernel's own refusal, in the middle of it
    try:
        with pytest.raises(InputError, match=r"cannot write .*a\.file: File too large"):
            write_whole(path, b"new" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "message"), [("a.file/b.file", "Not a directory"), ("b" * 256, "File name too long")])
def test_write_whole_to_a_name_that_cannot_be_says_so(tmp_path, name, message):
    (tmp_path / "a.file").write_bytes(b"old")
    with pytest.raises(InputError, match=f"cannot write .*: {message}"):
        write_whole(tmp_path / name, b"new")
    assert (tmp_path / "a.file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.file"]


def test_write_whole_to_the_longest_name_there_is_writes_it(tmp_path):
    write_whole(tmp_path / ("a" * 255), b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a" * 255]


def test_write_whole_by_many_at_once_leaves_one_of_their_files_whole(tmp_path):
    contents = [bytes([letter]) * 1_000_000 for letter in range(8)]
    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(lambda data: write_whole(tmp_path / "a.file", data), contents))
    assert (tmp_path / "a.file").read_bytes() in contents
    assert len(list(tmp_path.iterdir())) == 1


def test_copy_whole_of_a_file_that_is_not_there_names_it_and_leaves_the_target(tmp_path):
    (tmp_path / "b.file").write_bytes(b"old")
    with pytest.raises(InputError, match=r"cannot read .*a\.file: No such file"):
        copy_whole(tmp_path / "a.file", tmp_path / "b.file")
    assert (tmp_path / "b.file").read_bytes() == b"old"


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
