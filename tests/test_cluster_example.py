"""The README's compose file: what it says of files, services, variables and commands is so."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

README = (Path(__file__).parent.parent / "README.md").read_text()
TEXT = re.search(r"```yaml\n(# compose\.yaml\n.*?)```", README, re.DOTALL)[1]
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
EXTRAS = re.findall(r"netprune\[(\w+)\]", TEXT)
assert EXTRAS, "a test of each would be a test of none"


def test_compose_example_names_only_what_it_has():
    for service in SERVICES.values():
        assert {"image", "build"} & service.keys()
        assert set(service.get("depends_on", ())) <= SERVICES.keys()
        named = [volume.split(":")[0] for volume in service.get("volumes", ())]
        assert {name for name in named if not name.startswith((".", "/"))} <= COMPOSE["volumes"].keys()
        assert {config["source"] for config in service.get("configs", ())} <= COMPOSE["configs"].keys()


def test_compose_example_is_reachable_from_its_own_machine_only_and_holds_no_password():
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert re.findall(r"://[^\s:@]+:([^@]*)@", TEXT) == ["${PASSWORD:?}"] * 2


def test_compose_example_has_a_database_for_the_study_and_one_for_mlflow():
    words = SERVICES["mlflow"]["command"].split()
    backend = words[words.index("--backend-store-uri") + 1]
    storage = SERVICES["worker"]["environment"]["NETPRUNE_STORAGE"]
    databases = {SERVICES["db"]["environment"]["POSTGRES_DB"]}
    databases |= set(re.findall(r"CREATE DATABASE (\w+)", COMPOSE["configs"]["mlflow_database"]["content"]))
    assert {uri.rpartition("/")[2] for uri in (backend, storage)} == databases == {"study", "mlflow"}


def test_compose_example_calls_commands_with_options_that_they_have():
    words = shlex.split(SERVICES["worker"]["command"])
    assert words[:2] == ["python", "-m"]
    command = importlib.import_module(words[2]).main
    with command.make_context("search", words[3:]) as context:
        assert context.params["trials"] == 200
    server = importlib.import_module("mlflow.cli").server
    words = shlex.split(SERVICES["mlflow"]["command"].replace("${PASSWORD:?}", "p"))
    assert words[:2] == ["mlflow", "server"]
    with server.make_context("server", words[2:]) as context:
        assert context.params["app_name"] == "basic-auth"


@pytest.mark.parametrize("extra", EXTRAS)
def test_compose_example_installs_an_extra_that_there_is(extra):
    import configparser

    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parent.parent / "setup.cfg")
    assert extra in setup["options.extras_require"]
