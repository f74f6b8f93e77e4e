from __future__ import annotations

import shlex

from idc_ray.cli import parse
from idc_ray.config import CondenseConfig, load_config
from idc_ray.report.settings import changed_settings, command_line


def test_what_differs_is_listed_with_its_default() -> None:
    config = load_config(None, {"ratio": 0.25, "rlff.bandwidths": [1.0, 2.0], "mlflow.enabled": False})
    found = {
        each.name: (each.value, each.default)
        for each in changed_settings(CondenseConfig, config.model_dump(mode="json"))
    }
    assert found == {
        "ratio": ("0.25", "0.1"),
        "rlff.bandwidths": ("[1.0, 2.0]", "[0.5, 1.0, 2.0, 4.0]"),
        "mlflow.enabled": ("false", "true"),
    }


def test_the_command_asks_for_the_same_configuration() -> None:
    """Catches quoting, a list, a switch that is off, or a setting that the command forgets."""
    settings = {
        "input": "photos of 'mine'; rm -rf", "output": "o ut", "rlff.bandwidths": [1.0, 2.0], "strict": True,
        "mlflow.enabled": False, "actors.max_size": 3, "optimizer.betas": [0.5, 0.9],
    }  # fmt: skip
    config = load_config(None, settings)
    words = shlex.split(command_line("condense", CondenseConfig, config.model_dump(mode="json")))
    assert words[:2] == ["idc-ray", "condense"]
    assert parse(CondenseConfig, words[2:], "") == config


def test_a_setting_that_an_earlier_version_lacked_is_unchanged() -> None:
    assert changed_settings(CondenseConfig, {"ratio": 0.1}) == []
