"""The ``idc-ray`` command and its subcommands, whose dependencies are imported when they are called.

Nothing here imports torch, Ray or MLflow, so help, version and errors in the arguments take a fraction of a second.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import idc_ray
from idc_ray.cli import parse, run_job, start_logging
from idc_ray.config import Section
from idc_ray.errors import BadRequest
from idc_ray.importing import uncollected

#: Every subcommand and its one-line description, in the order in which ``idc-ray --help`` lists them.
COMMANDS = {
    "condense": "Condense images into a small training set for super-resolution.",
    "train": "Train a super-resolution network on condensed sets or images.",
    "evaluate": "Measure the PSNR and SSIM of a network on benchmark sets.",
    "compare": "Condense, train and evaluate with several methods, and tabulate the results.",
    "tune": "Search for settings of condense that give better students.",
    "export": "Write a condensed set as PNG folders, LMDB, WebDataset or a Hugging Face dataset.",
    "upscale": "Upscale photographs with a network.",
    "curate": "Cut images into tiles; leave out near-duplicates and flat, blurred, blocky or noisy tiles.",
    "degrade": "Make low-resolution images by blur, noise and compression.",
    "status": "Show the state of a condense job, running or not, from its output.",
    "report": "Write a self-contained HTML report of one or more outputs.",
    "verify": "Check a condensed set for damage, and remove damaged parts.",
    "completion": "Print a completion script for bash, zsh or fish.",
}

#: Subcommands with settings: the configuration's type, and the function that takes a configuration and returns the exit
#: code. The other subcommands are modules of this package with a ``main`` that takes arguments.
JOBS = {
    "condense": ("idc_ray.config.condense:CondenseConfig", "idc_ray.pipeline.condense:condense"),
    "train": ("idc_ray.config.train:TrainConfig", "idc_ray.training.driver:train"),
    "evaluate": ("idc_ray.config.evaluate:EvaluateConfig", "idc_ray.evaluation.run:evaluate_command"),
    "compare": ("idc_ray.config.compare:CompareConfig", "idc_ray.comparison.compare:compare"),
    "tune": ("idc_ray.config.tune:TuneConfig", "idc_ray.tuning.tune:tune"),
    "export": ("idc_ray.config.export:ExportConfig", "idc_ray.commands.export:export"),
    "curate": ("idc_ray.config.curate:CurateConfig", "idc_ray.curation.job:curate"),
    "degrade": ("idc_ray.config.degrade:DegradeConfig", "idc_ray.pipeline.degrade:degrade"),
    "upscale": ("idc_ray.config.upscale:UpscaleConfig", "idc_ray.evaluation.upscale_job:run_upscale"),
}


def configuration(command: str) -> type[Section] | None:
    """The configuration's type of a subcommand; None if it has arguments only."""
    if command not in JOBS:
        return None
    found: type[Section] = pkgutil.resolve_name(JOBS[command][0])
    return found


def run(command: str | None = None) -> NoReturn:
    """Run this process's command line and exit with its code.

    Args:
        command: the subcommand; None: the first argument in ``sys.argv``.
    """
    given = sys.argv[1:]
    run_job(main, given if command is None else [command, *given], own_process=True)


def main(argv: Sequence[str]) -> int:
    """Run ``idc-ray ARGV``.

    Returns:
        The exit code of the subcommand.

    Raises:
        BadRequest: there is no such subcommand.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"idc-ray {idc_ray.__version__}")
        return 0
    name, *arguments = argv
    if name not in COMMANDS:
        raise BadRequest(_unknown(name))
    model = configuration(name)
    if model is None:
        return int(importlib.import_module(f"idc_ray.commands.{name}").main(arguments))
    config = parse(model, arguments, COMMANDS[name], name)
    _check_inputs(name, config)
    start_logging()
    from idc_ray.pipeline.progress import Heartbeat

    with Heartbeat("importing torch and Ray"), uncollected():  # after parsing: it takes seconds
        job = pkgutil.resolve_name(JOBS[name][1])
    return int(job(config))


def _check_inputs(command: str, config: Any) -> None:
    """Refuse an input that does not exist before the imports, which take seconds."""
    given = {"condense": ("input",), "curate": ("input",), "degrade": ("input",), "train": ("data",)}.get(command, ())
    for value in (getattr(config, name) for name in given):
        from idc_ray.images.find import check_exists

        for path in (value,) if isinstance(value, str) else value or ():
            check_exists(path)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "Instance Data Condensation for image super-resolution, as batch jobs on Ray.",
            "",
            "usage: idc-ray COMMAND [--config FILE] [--SETTING VALUE ...]",
            "",
            *lines,
            "",
            "idc-ray COMMAND --help      the most common settings",
            "idc-ray COMMAND --help-all  all settings",
            "idc-ray --version           the version",
        ]
    )


def _unknown(name: str) -> str:
    if name.startswith("-"):
        return f"expected a command before {name}: idc-ray COMMAND {name} ...; commands are {', '.join(COMMANDS)}"
    near = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"commands are {', '.join(COMMANDS)}"
    return f"unknown command '{name}'; {hint}"
