"""What of the user's code travels with a model: the sources, and nothing that lies beside them."""

import importlib
import sys

import pytest

from sweeps.user_code import copy_code, requirements


def load(name):
    sys.path.append("")
    importlib.invalidate_caches()
    return importlib.import_module(name)


def copied(folder, name):
    folder.mkdir()
    places = copy_code(name, folder)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {place.name for place in places}, files


def test_copy_code_takes_a_module_and_what_it_imported_from_beside_it(own_module, tmp_path):
    own_module("x = 1", "blocks")
    own_module("y = 1", "unused")
    own_module("import json, numpy, blocks", "mynet")
    load("mynet")
    assert copied(tmp_path / "out", "mynet") == ({"mynet.py", "blocks.py"}, {"mynet.py", "blocks.py"})
    assert (tmp_path / "out" / "blocks.py").read_text() == "x = 1"


@pytest.mark.parametrize("init", [True, False], ids=["package", "namespace"])
def test_copy_code_of_a_package_takes_all_of_its_sources_and_no_other_file(own_module, tmp_path, init):
    own_module("x = 1", "nets.parts.blocks")
    own_module("import nets.parts.blocks", "nets.mynet")
    own_module("z = 1", "nets.lazily_imported")
    if init:
        own_module("", "nets.__init__")
    (tmp_path / "nets" / "secret.env").write_text("KEY=1")
    (tmp_path / "nets" / "weights.pt").write_bytes(b"0" * 100)
    load("nets.mynet")
    sources = {"nets/mynet.py", "nets/parts/blocks.py", "nets/lazily_imported.py"} | (
        {"nets/__init__.py"} if init else set()
    )
    assert copied(tmp_path / "out", "nets.mynet") == ({"nets"}, sources)


def test_copy_code_follows_no_link_to_another_folder(own_module, tmp_path):
    own_module("x = 1", "elsewhere.private")
    own_module("", "nets.__init__")
    own_module("x = 1", "nets.mynet")
    (tmp_path / "nets" / "link").symlink_to(tmp_path / "elsewhere")
    load("nets.mynet")
    assert copied(tmp_path / "out", "nets.mynet")[1] == {"nets/__init__.py", "nets/mynet.py"}


def test_copy_code_of_a_linked_file_takes_it_by_its_own_name_and_what_lies_beside_the_link(own_module, tmp_path):
    own_module("x = 1", "blocks")
    own_module("import blocks", "elsewhere.version2")
    (tmp_path / "mynet.py").symlink_to(tmp_path / "elsewhere" / "version2.py")
    load("mynet")
    assert copied(tmp_path / "out", "mynet") == ({"mynet.py", "blocks.py"}, {"mynet.py", "blocks.py"})
    assert not (tmp_path / "out" / "mynet.py").is_symlink()


def test_installed_module_is_a_requirement_and_no_code(own_module, tmp_path):
    own_module("x = 1")
    load("mynet")
    importlib.import_module("yaml")
    assert copied(tmp_path / "out", "yaml") == (set(), set())
    (wanted,) = requirements("yaml")
    assert wanted.lower().startswith("pyyaml==")
    assert requirements("mynet") == []
