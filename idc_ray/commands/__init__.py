"""The ``idc-ray`` command: one subcommand per job, each in a file of its own that is imported when it is called.

Nothing here imports torch, Ray, or MLflow: help, version and refused requests take a fraction of a second.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import idc_ray
from idc_ray.cli import run_job
from idc_ray.errors import BadRequest

__all__ = ["COMMANDS", "main", "run"]

#: Every subcommand and its one-line description, in the order in which ``idc-ray --help`` lists them.
COMMANDS = {
    "condense": "Condense images into a small training set for super-resolution.",
    "train": "Train a super-resolution network on condensed sets or images.",
    "evaluate": "Measure the PSNR and SSIM of a network on benchmark sets.",
    "compare": "Condense, train and evaluate with several methods, and tabulate the results.",
    "tune": "Search for settings of condense that make better students.",
    "export": "Write a condensed set as folders of PNG pairs, for BasicSR and similar trainers.",
    "upscale": "Upscale photographs with a network.",
    "status": "Show the state of a condense job, running or not, from its output.",
    "report": "Write what outputs hold as one HTML file that needs no network.",
    "verify": "Check a condensed set for damage, and take damage out.",
    "completion": "Print a completion script for bash, zsh or fish.",
}


def run(command: str | None = None) -> NoReturn:
    """Run this process's command line and exit with its code.

    Args:
        command: the subcommand whose arguments ``sys.argv`` holds; None: ``sys.argv`` names it.
    """
    given = sys.argv[1:]
    run_job(main, given if command is None else [command, *given])


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
    module = importlib.import_module(f"idc_ray.commands.{name}")
    return int(module.main(arguments))


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
            "idc-ray COMMAND --help      the settings that are used most",
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
