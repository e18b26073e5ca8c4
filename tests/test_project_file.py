"""The project file beside the commands that it calls."""

import importlib
import shlex
from pathlib import Path

import pytest
import yaml
from mlflow.projects._project_spec import load_project

ROOT = Path(__file__).parent.parent
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
ENTRIES = PROJECT["entry_points"]


def command_of(entry: str):
    words = shlex.split(ENTRIES[entry]["command"])
    assert words[:2] == ["python", "-m"]
    return importlib.import_module(words[2]).main, words[3:]


def test_entry_points_are_the_documented_ones():
    assert set(ENTRIES) == {"main", "train", "scan", "search", "register", "report", "analyse", "export"}


@pytest.mark.parametrize("entry", ENTRIES)
def test_project_parameters_are_the_options_of_the_command(entry):
    command, words = command_of(entry)
    # an address may hold a password, and MLflow logs parameters as they were typed
    options = {option.name: option for option in command.params if option.name != "storage"}
    parameters = ENTRIES[entry]["parameters"]
    assert set(parameters) == set(options)
    for name, parameter in parameters.items():
        option = options[name]
        assert option.type.convert(parameter["default"], option, None) == option.default, name
    # a parameter that is declared and not passed on is recorded by MLflow all the same: the record would lie
    assert words == [word for name in words[1::2] for word in (f"--{name[1:-1].replace('_', '-')}", name)]
    assert {word[1:-1] for word in words[1::2]} == set(parameters)


@pytest.mark.parametrize("entry", ENTRIES)
def test_project_parameter_types_are_not_path(entry):
    # a project without an environment refuses `path`, and `uri` would download
    assert {p["type"] for p in ENTRIES[entry]["parameters"].values()} <= {"string", "int", "float"}


def test_project_asks_for_no_environment_of_its_own():
    # what makes plain `mlflow run .` use the active environment: see the comment in MLproject
    assert load_project(str(ROOT)).env_type is None
    assert not list(ROOT.glob("python_env.y*ml")) + list(ROOT.glob("conda.y*ml"))


def test_every_command_has_help_for_every_option():
    for entry in ENTRIES:
        command, _ = command_of(entry)
        assert command.help
        assert all(option.help for option in command.params), entry
