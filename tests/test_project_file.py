"""The project file beside the commands that it calls."""

import importlib
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from mlflow.projects._project_spec import load_project

from sweeps.command import EXIT_CODES

ROOT = Path(__file__).parent.parent
PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
ENTRIES = PROJECT["entry_points"]
NOT_IN_THE_PROJECT = {
    "storage": "an address may hold a password, and MLflow logs parameters as they were typed",
    "verbose": "what is said on the terminal changes no result, and `mlflow run` has no flags",
    "quiet": "the same",
}
"""Options that are no parameters, and why."""


def command_of(entry: str):
    words = shlex.split(ENTRIES[entry]["command"])
    assert words[:2] == ["python", "-m"]
    return importlib.import_module(words[2]).main, words[3:]


def test_entry_points_are_the_documented_ones():
    assert set(ENTRIES) == {"main", "train", "scan", "search", "register", "report", "analyse", "export"}


@pytest.mark.parametrize("entry", ENTRIES)
def test_project_parameters_are_the_options_of_the_command(entry):
    command, words = command_of(entry)
    options = {option.name: option for option in command.params if option.name not in NOT_IN_THE_PROJECT}
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


README_COMMANDS = [
    line.strip()
    for line in (ROOT / "README.md").read_text().splitlines()
    if line.strip().startswith("python -m sweeps.")
]
assert README_COMMANDS, "a test of each would be a test of none"


@pytest.mark.parametrize("line", README_COMMANDS)
def test_readmes_command_is_understood(line):
    words = shlex.split(line, comments=True)
    command = importlib.import_module(words[2]).main
    assert command.make_context(words[2], words[3:]).params


@pytest.mark.parametrize("entry", ENTRIES)
def test_command_can_be_made_verbose_or_quiet(entry):
    command, _ = command_of(entry)
    flags = {name: option for option in command.params for name in option.opts if option.is_flag}
    assert flags.keys() == {"-v", "--verbose", "-q", "--quiet"}
    assert command.make_context(entry, ["-q"]).params["quiet"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_command_help_ends_with_an_example_that_is_understood_and_the_exit_codes(entry):
    command, _ = command_of(entry)
    text = CliRunner().invoke(command, ["--help"]).output
    (example,) = [line.strip() for line in text.splitlines() if line.strip().startswith("python -m")]
    words = shlex.split(example)
    assert words[:3] == shlex.split(ENTRIES[entry]["command"])[:3]
    assert command.make_context(entry, words[3:]).params.keys() == {option.name for option in command.params}
    assert text.strip().endswith(EXIT_CODES)
