"""Where a study lives: files, databases, a proxy; no address shows its password."""

import subprocess
import sys

import pytest
from optuna.storages import JournalStorage

from netprune.errors import InputError
from netprune.files import alone
from sweeps.secrets import masked
from sweeps.storage import open_storage

SECRET = "s3cr:et"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_open_storage_of_no_address_is_the_journal_here(tmp_path):
    assert isinstance(open_storage(""), JournalStorage)
    assert (tmp_path / "optuna.journal").exists()


def test_open_storage_of_a_database_makes_its_tables(tmp_path):
    open_storage("sqlite:///study.db")
    assert open_storage("sqlite:///study.db").get_all_studies() == []


def test_open_storage_of_a_fresh_database_by_several_processes_at_once_works():
    script = "from sweeps.storage import open_storage; open_storage('sqlite:///fresh.db').get_all_studies()"
    started = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 2, errors


def test_open_storage_that_is_mlflows_says_that_it_cannot_be_shared(fresh_database):
    with pytest.raises(InputError, match="a database of its own"):
        open_storage(f"sqlite:///{fresh_database}")


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/none",
        f"nosuch://me:{SECRET}@host/none",
        f"grpc://me:{SECRET}@host",
        f"mysql+nosuch://me:{SECRET}@host/none",
    ],
)
def test_open_storage_that_cannot_be_used_says_so_without_the_password(url, monkeypatch):
    monkeypatch.setattr("sweeps.storage.PAUSE_SECONDS", 0.0)
    with pytest.raises(InputError) as caught:
        open_storage(url)
    assert SECRET not in str(caught.value)
    assert "me:***@" in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("url", ["grpc://host:port", "grpc://host:99999", "grpc://[::1", "grpc://host", "grpc://:1"])
def test_open_storage_of_a_proxy_without_host_and_port_says_what_its_address_is(url):
    with pytest.raises(InputError, match="a proxy's address is grpc://host:port"):
        open_storage(url)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://a:b@c/d then mysql://e:f@g", "http://a:***@c/d then mysql://e:***@g"),
        ("postgresql+psycopg://u:p%40ss/w:rd@h:1/x", "postgresql+psycopg://u:***@h:1/x"),
        ("sqlite:///a/b.db", "sqlite:///a/b.db"),
        ("time 12:30 me@example.org", "time 12:30 me@example.org"),
        ("redis://:only@h", "redis://:***@h"),
    ],
)
def test_masked_hides_passwords_and_nothing_else(text, expected):
    assert masked(text) == expected


def test_alone_lets_one_process_in_at_a_time(tmp_path):
    lock = tmp_path / "lock"
    script = (
        "import sys, time; from pathlib import Path; from netprune.files import alone\n"
        "with alone(Path('lock')):\n"
        "    before = Path('count').read_text(); time.sleep(0.05); Path('count').write_text(str(int(before) + 1))\n"
    )
    (tmp_path / "count").write_text("0")
    with alone(lock):
        started = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
        (tmp_path / "count").write_text("10")
    assert [process.wait(timeout=60) for process in started] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "13"
