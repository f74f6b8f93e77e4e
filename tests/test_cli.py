from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from idc_ray.cli import parse, run_job
from idc_ray.config import CondenseConfig, settings_of
from idc_ray.config.evaluate import EvaluateConfig
from idc_ray.config.train import TrainConfig
from idc_ray.errors import BadRequest, IdcError, Interrupted, Locked


def config_of(*argv: str) -> CondenseConfig:
    return parse(CondenseConfig, argv, "test")


def refusal(*argv: str) -> str:
    with pytest.raises(BadRequest) as caught:
        config_of(*argv)
    return str(caught.value)


@pytest.mark.parametrize("argv", [["--tile-size", "32"], ["--tile_size", "32"], ["--tile_size=32"]])
def test_dashes_and_underscores_name_the_same_setting(argv: list[str]) -> None:
    assert config_of(*argv).tile_size == 32


def test_only_the_name_loses_its_underscores() -> None:
    """Catches a rewrite that also touches values: a folder `my_photos` would become `my-photos`."""
    config = config_of("--input=my_photos", "--output", "out_1")
    assert (config.input, config.output) == ("my_photos", "out_1")


@pytest.mark.parametrize("setting", list(settings_of(CondenseConfig)), ids=lambda s: s.name)
def test_every_setting_is_an_option(setting: object) -> None:
    """Catches a setting that YAML has and the command line has not. A switch may stand alone, the rest need a value."""
    name: str = setting.name  # type: ignore[attr-defined]
    if setting.field.annotation is bool:  # type: ignore[attr-defined]
        section, _, leaf = name.rpartition(".")
        for argv, value in ((f"--{name}", True), (f"--no-{name}", False)):
            config = config_of(argv)
            assert getattr(getattr(config, section) if section else config, leaf) is value
    else:
        assert "expected one argument" in refusal(f"--{name}")


def test_nested_numbers_lists_and_null() -> None:
    config = config_of("--rlff.num-frequencies", "512", "--rlff.bandwidths", "[0.5, 1]", "--teacher", "null")
    assert config.rlff.num_frequencies == 512
    assert config.rlff.bandwidths == (0.5, 1.0)
    assert config.teacher is None
    assert config_of("--actors.gpus", "0.5").actors.gpus == 0.5
    assert config_of("--actors.gpus", "null").actors.gpus is None


def test_text_is_taken_as_it_stands() -> None:
    """Catches reading every value as YAML: `[ab]*.png` is a glob, `2024` a folder, `yes` a name."""
    assert config_of("--input", "[ab]*.png").input == "[ab]*.png"
    assert config_of("--output", "2024").output == "2024"
    assert config_of("--mlflow.run_name", "yes").mlflow.run_name == "yes"
    for text in ("[a-z]*.png", "photos #2", "2024", "2024-01-01", "on", "a: b"):
        assert parse(TrainConfig, ["--data", text], "").data == (text,)
    assert parse(TrainConfig, ["--data", "[a b, '2024']"], "").data == ("a b", "2024")


@pytest.mark.parametrize("text", ["[exp [1] 2]", "['a b', c"])
def test_an_invalid_list_is_refused(text: str) -> None:
    """Catches a forgotten quote or bracket that ends as an input without images."""
    with pytest.raises(
        BadRequest, match="--data is .*looks like a list but is not valid YAML; put each part into quotes"
    ):
        parse(TrainConfig, ["--data", text], "")
    assert parse(TrainConfig, ["--data", "['[exp [1] 2]']"], "").data == ("[exp [1] 2]",)


def test_a_switch_takes_a_truth_value_and_nothing_else() -> None:
    assert config_of("--strict", "false").strict is False
    assert config_of("--strict", "--dry-run").dry_run is True
    assert "'strict' is 'perhaps'" in refusal("--strict", "perhaps")


@pytest.mark.parametrize("argv", [["--iter", "3"], ["--rlff.num_freq", "8"]])
def test_options_may_not_be_shortened(argv: list[str]) -> None:
    """Catches argparse's abbreviations: a script that uses one breaks when a setting is added."""
    assert "unknown setting" in refusal(*argv)


def test_unknown_options_name_the_nearest() -> None:
    assert refusal("--rlff.num-frequncies", "512") == (
        "unknown setting 'rlff.num_frequncies'; did you mean 'rlff.num_frequencies'?"
    )
    assert "unexpected argument 'photos'" in refusal("photos")


def test_options_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("scale: 4\nseed: 3\nstrict: true\n")
    config = config_of("--config", str(path), "--seed", "7")
    assert (config.scale, config.seed, config.strict) == (4, 7, True)
    assert config_of("--no-strict", "--config", str(path)).strict is False


def test_the_whole_help_lists_settings_by_section_with_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        config_of("--help-all")
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert text.index("rlff:") < text.index("--rlff.num-frequencies") < text.index("loss:")
    assert "(default: [0.5, 1.0, 2.0, 4.0])" in text
    assert "--tile-size INT Side of an LR tile" in text
    missing = [s.name for s in settings_of(CondenseConfig) if f"--{s.name.replace('_', '-')} " not in text]
    assert missing == []


def exit_of(error: BaseException | int) -> int:
    def main(argv: Sequence[str]) -> int:
        if isinstance(error, BaseException):
            raise error
        return error

    with pytest.raises(SystemExit) as caught:
        run_job(main, [])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (0, 0),
        (3, 3),
        (IdcError("x"), 1),
        (BadRequest("x"), 2),
        (Locked("x"), 4),
        (Interrupted("x"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException | int, code: int) -> None:
    assert exit_of(error) == code


def test_a_users_mistake_is_one_message_and_a_bug_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    exit_of(BadRequest("no images in 'x'"))
    assert capsys.readouterr().err == "error: no images in 'x'\n"
    exit_of(Interrupted("stopped by SIGTERM"))
    assert capsys.readouterr().err == "stopped by SIGTERM\n"  # no error: the user wanted it
    assert exit_of(ZeroDivisionError("bug")) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "end"), [([], "continues"), (["--overwrite"], "continues, without --overwrite")])
def test_an_interrupt_prints_how_to_continue(options: list[str], end: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches advice that throws away what was finished."""

    def interrupted(argv: Sequence[str]) -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        run_job(interrupted, options)
    assert capsys.readouterr().err.strip().endswith(end)


def test_help_into_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    """Catches `job --help | head`, which ends in a BrokenPipeError."""
    program = (
        "from idc_ray.cli import run_job\n"
        "def main(argv):\n    print('x' * 10_000_000)\n    return 0\n"
        "run_job(main, [])\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.read(1)
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    child.wait()


def test_a_setting_that_is_left_out_is_named() -> None:
    """Catches a message about the settings that were given instead of the one that is missing."""
    with pytest.raises(BadRequest, match="^--benchmarks is required$"):
        parse(EvaluateConfig, ["--model", "bundled", "--output", "E"], "")
