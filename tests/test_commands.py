from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import idc_ray
from idc_ray import commands
from idc_ray.cli import run_job
from idc_ray.commands import COMMANDS, JOBS, main
from idc_ray.config import Section, settings_of
from idc_ray.errors import BadRequest

ROOT = Path(__file__).resolve().parents[1]
WITH_SETTINGS = list(JOBS)


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Output of a command with exit code 0."""
    with pytest.raises(SystemExit) as ended:
        run_job(main, argv)
    assert ended.value.code == 0
    return capsys.readouterr().out


def configuration(command: str) -> type[Section]:
    found = commands.configuration(command)
    assert found is not None
    return found


def test_help_names_every_command_and_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help")
    assert all(f"  {name} " in text for name in COMMANDS)
    assert len(text.splitlines()) <= 40
    assert shown(capsys) == text
    assert shown(capsys, "--version") == f"idc-ray {idc_ray.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_one_screen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, command, "--help").splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("command", WITH_SETTINGS)
def test_the_short_help_shows_settings_that_exist_and_the_long_one_all(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a renamed setting that lives on in the short help, and a required one that it leaves out."""
    model = configuration(command)
    settings = {setting.name: setting for setting in settings_of(model)}
    assert set(model.common) <= set(settings)
    assert {name for name, setting in settings.items() if setting.field.is_required()} <= set(model.common)
    short = shown(capsys, command, "--help").split()
    whole = shown(capsys, command, "--help-all").split()
    options = {name: f"--{name.replace('_', '-')}" for name in settings}
    assert [name for name, option in options.items() if option in short] == [n for n in settings if n in model.common]
    assert [name for name, option in options.items() if option not in whole] == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["condens"], "unknown command 'condens'; did you mean 'condense'?"),
        (["exprot", "--run", "x"], "did you mean 'export'"),
        (["xyz"], "unknown command 'xyz'; commands are condense, train, "),
        (["--input", "x"], "expected a command before --input: idc-ray COMMAND --input"),
    ],
)
def test_an_unknown_command_is_refused_with_the_nearest(argv: list[str], message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        main(argv)
    assert message in str(caught.value)


def loaded(argv: list[str]) -> tuple[int, set[str]]:
    """Exit code of the command in a separate process, and the packages that it imported."""
    program = (
        f"import sys, atexit, json; sys.argv[1:] = {argv!r}\n"
        "names = ('torch', 'ray', 'mlflow', 'numpy', 'pyarrow', 'optuna')\n"
        "atexit.register(lambda: print('\\n' + json.dumps([n for n in names if n in sys.modules])))\n"
        "from idc_ray.commands import run; run()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["nonsense"], 2),
        *(([name, "--help"], 0) for name in COMMANDS),
        *(([name, "--nonsense", "1"], 2) for name in COMMANDS),
    ],
    ids=str,
)
def test_help_and_refusals_import_nothing_slow(argv: list[str], code: int) -> None:
    """Catches seconds of importing torch and Ray before a typing error is reported."""
    assert loaded(argv) == (code, set())


@pytest.mark.parametrize(
    "argv",
    [["condense", "--input", "/nowhere"], ["condense", "--input", "/nowhere/*.png"], ["train", "--data", "/nowhere"]],
)
def test_an_input_that_does_not_exist_is_refused_without_torch(argv: list[str]) -> None:
    code, packages = loaded(argv)
    assert code == 2
    assert not packages & {"torch", "ray", "mlflow"}


def test_both_ways_to_start_it_are_the_same() -> None:
    """The module, and a job's script from a clone; the console script's entry is checked with the wheel."""
    module = [sys.executable, "-m", "idc_ray", "status"]
    script = [sys.executable, "-P", str(ROOT / "jobs" / "status.py")]
    results = [
        subprocess.run([*command, "/nowhere"], cwd=ROOT, capture_output=True, text=True, check=False)
        for command in (module, script)
    ]
    assert [result.returncode for result in results] == [2, 2]
    assert results[0].stderr == results[1].stderr != ""


def test_every_command_that_is_a_job_has_a_script() -> None:
    scripts = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert scripts == set(COMMANDS) - {"completion"}
    for name in scripts:
        assert f'run("{name}")' in (ROOT / "jobs" / f"{name}.py").read_text()


def complete(*words: str) -> list[str]:
    """What bash offers for the last word."""
    script = subprocess.run(
        [sys.executable, "-m", "idc_ray", "completion", "bash"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    line = " ".join(f"'{word}'" for word in words)
    ask = f'COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _idc_ray; printf "%s\\n" "${{COMPREPLY[@]}}"'
    return subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True).stdout.split()


def test_completion_offers_commands_options_and_choices() -> None:
    assert complete("idc-ray", "co") == ["condense", "compare", "completion"]
    assert complete("idc-ray", "condense", "--matching", "") == ["none", "cells", "pixels", "both"]
    assert complete("idc-ray", "condense", "--scale", "") == ["1", "2", "3", "4"]
    assert complete("idc-ray", "condense", "--source.m") == ["--source.max-pixels"]
    assert complete("idc-ray", "train", "--no-ov") == ["--no-overwrite"]
    assert complete("idc-ray", "condense", "--input", "ph") == []  # bash itself then offers files


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_of_other_shells_knows_all_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "completion", shell)
    for command in WITH_SETTINGS:
        for setting in settings_of(configuration(command)):
            assert setting.name.replace("_", "-") in text


@pytest.mark.parametrize("command", JOBS)
def test_every_command_finds_its_job(command: str) -> None:
    """Catches a function that was moved or renamed: the table names it by text."""
    assert callable(pkgutil.resolve_name(JOBS[command][1]))
