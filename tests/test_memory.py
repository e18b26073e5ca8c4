"""What is free on a machine, and in a container on it."""

import pytest
import torch

from netprune import memory


@pytest.mark.parametrize(("most", "left"), [("1000", 400), ("500", 0), ("max", None)])
def test_free_memory_heeds_the_limit_of_a_container(tmp_path, monkeypatch, most, left):
    for name, text in (("max", most), ("current", "700"), ("stat", "anon 1\ninactive_file 100\nfile 5")):
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    free = memory.free_memory(torch.device("cpu"))
    assert free == left if left is not None else free > 10**6


def test_free_memory_is_shared_by_the_processes_that_torchrun_starts_here(tmp_path, monkeypatch):
    for name, text in (("max", "1000"), ("current", "100"), ("stat", "inactive_file 0")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert memory.free_memory(torch.device("cpu")) == 300
