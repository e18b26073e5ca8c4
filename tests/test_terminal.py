"""What a command says on the terminal: quiet, normal and verbose, its exit codes, and no colours."""

import io
import re
from pathlib import Path

import click
import pytest
import requests
import torch
from click.testing import CliRunner

from netprune.errors import InputError
from sweeps import progress
from sweeps.command import command, team_command
from sweeps.progress import Progress, Voice, detail, report, speaking
from sweeps.tracking import tracked_run

ROOT = Path(__file__).parent.parent


@command("python -m sweeps.nothing")
@click.option("--fail", default="")
def work(fail):
    """Say something of everything."""
    report("news")
    detail("detail")
    with tracked_run("scan", "a run", {}), Progress("bar") as bar:
        bar(1, 2)
        if fail:
            raise InputError(fail)
    click.echo("result")


def run_raising(error, *flags):
    @command("python -m sweeps.nothing")
    def raising():
        raise error

    return CliRunner().invoke(raising, list(flags))


def run(*arguments):
    return CliRunner().invoke(work, list(arguments))


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], {"news"}),
        (["-q"], set()),
        (["--quiet"], set()),
        (["-v"], {"news", "detail"}),
        (["--verbose"], {"news", "detail"}),
    ],
)
def test_command_says_as_much_as_it_is_told_and_always_its_result(flags, said):
    found = run(*flags)
    assert found.exit_code == 0, found.output
    assert found.stdout == "result\n"
    lines = set(found.stderr.splitlines())
    assert lines & {"news", "detail"} == said
    if "detail" in said:
        assert any(re.fullmatch(r"run [0-9a-f]{32}: a run", line) for line in lines)
        assert any(line.startswith("store sqlite:///") for line in lines)
        assert any(line.startswith("took ") for line in lines)
    else:
        assert lines == said  # and no bar, where stderr is no terminal


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("flags", [[], ["-q"], ["-v"]])
def test_command_that_fails_says_one_sentence_and_verbose_the_traceback_before_it(flags):
    found = run("--fail", "mend it.", *flags)
    assert found.exit_code == 1
    assert found.stderr.splitlines()[-1] == "Error: mend it."
    assert ("Traceback" in found.stderr) == ("-v" in flags)
    assert found.stdout == ""


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "/a/b"), r"refuses /a/b \(Permission denied\): mend its permissions"),
        (OSError(28, "No space left on device"), r"refuses that \(No space left on device\): make room, and give the"),
        (requests.HTTPError("413 Client Error: http://me:secret@host/"), r"413 Client Error: http://me:\*\*\*@host/\."),
        (MemoryError(), "memory is not enough.*smaller batch_size"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried"), "memory is not enough"),
        (torch.OutOfMemoryError("CUDA out of memory."), "memory is not enough"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["-v"]])
def test_command_to_which_the_system_refuses_something_ends_in_one_sentence(error, said, flags):
    found = run_raising(error, *flags)
    assert found.exit_code == 1
    assert re.fullmatch(f"Error: .*{said}.*", found.stderr.splitlines()[-1])
    assert ("Traceback" in found.stderr) == ("-v" in flags)
    assert "secret" not in found.stderr


@pytest.mark.usefixtures("store")
def test_command_whose_output_nobody_reads_any_more_ends_without_a_word():
    found = run_raising(BrokenPipeError(32, "Broken pipe"))
    assert (found.exit_code, found.stderr) == (1, "")


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("error", [RuntimeError("a defect"), KeyError("another")])
def test_command_with_a_defect_is_not_taken_for_one_that_the_system_refused(error):
    assert run_raising(error).exception is error


@pytest.mark.usefixtures("store")
def test_command_whose_output_goes_where_not_all_letters_are_known_says_its_result():
    @command("python -m sweeps.nothing")
    def arrow():
        click.echo("a → b ± c")

    found = CliRunner(charset="latin-1").invoke(arrow)
    assert found.exit_code == 0, found.output
    assert found.stdout == "a ? b ± c\n"


@pytest.mark.usefixtures("store")
def test_command_that_is_verbose_shows_no_password_in_a_traceback():
    found = run("--fail", "postgresql://me:secret@host/db is not there", "-v")
    assert "Traceback" in found.stderr
    assert "secret" not in found.stderr


def test_command_that_is_to_be_verbose_and_quiet_is_refused_as_a_wrong_option():
    found = run("-q", "-v")
    assert found.exit_code == 2
    assert "--verbose and --quiet are both given" in found.stderr


@pytest.mark.usefixtures("store")
def test_voice_is_of_the_command_alone():
    run("-q")
    with speaking(Voice.VERBOSE):
        run("-q")
        assert progress._voice.get() is Voice.VERBOSE
    assert progress._voice.get() is Voice.NORMAL


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("voice", "drawn"), [(Voice.QUIET, False), (Voice.NORMAL, True), (Voice.VERBOSE, True)])
def test_progress_on_a_terminal_is_drawn_unless_the_command_is_quiet_and_never_coloured(monkeypatch, voice, drawn):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with speaking(voice), Progress("bar") as bar:
        bar(1, 2)
        bar(2, 2)
    assert ("bar" in terminal.getvalue()) == drawn
    assert not re.search(r"\x1b\[[0-9;]*m", terminal.getvalue())


def test_nothing_is_coloured_so_that_no_color_holds():
    for path in (ROOT / "sweeps").rglob("*.py"):
        assert not re.search(r"click\.style|secho|\\x1b\[|\\033\[", path.read_text()), path


@pytest.mark.parametrize("kind", [command, team_command])
def test_command_help_keeps_its_example_on_one_line(kind):
    example = "python -m sweeps.nothing " + " ".join(f"--option-{i} {i}" for i in range(12))
    made = kind(example)(lambda: None)
    assert f"  {example}\n" in CliRunner().invoke(made, ["--help"]).output
