"""Command lines made from typed configurations, and exit codes made from errors. Shared by all commands."""

from __future__ import annotations

import argparse
import copy
import gc
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel

from idc_ray.config import Section, Setting, load, settings_of, unknown_setting
from idc_ray.config.synonyms import current_name
from idc_ray.errors import BadRequest, IdcError, Interrupted
from idc_ray.help_text import base_type, default_text, kinds_of, metavar, short_help
from idc_ray.interrupt import end_process, interruptible
from idc_ray.redact import printable, redact_within
from idc_ray.submit_paths import is_submitted, refuse_relative_paths

Model = TypeVar("Model", bound=Section)

CONTINUE = "what was finished is kept; the same command continues"
WITHOUT = ", without --overwrite"


def parse(model: type[Model], argv: Sequence[str], description: str, command: str = "COMMAND") -> Model:
    """Configuration from a command line: every setting is an option, ``--config FILE`` is read first.

    ``--tile-size 48``, ``--tile_size=48``, ``--rlff.num-frequencies 512``, ``--strict``, ``--no-strict``,
    ``--strict false``, ``--rlff.bandwidths "[0.5, 1]"``, ``--teacher null``. Options may not be shortened.

    Args:
        model: the configuration's type.
        argv: arguments without the program's name.
        description: first lines of ``--help``.
        command: the subcommand, for ``--help``.

    Raises:
        BadRequest: an unknown option (with the nearest valid one), a missing value, a wrong type or range, a relative
            path in a job that was submitted to a cluster.
    """
    settings = {setting.name: setting for setting in settings_of(model)}
    parser = _parser(settings, description, f"idc-ray {command}")
    text = short_help(model, description, command)
    parser.add_argument("-h", "--help", action=_Print, nargs=0, const=text, help="show the most used settings and exit")
    known, rest = parser.parse_known_args(_normalised(argv, settings))
    if rest:
        _refuse(model, rest[0])
    overrides = {name: _value(settings[name], text) for name, text in vars(known).items() if name in settings}
    config = load(model, known.config, overrides)
    refuse_relative_paths(config)
    return config


class _SafeFormatter(logging.Formatter):
    """Without credentials, also in tracebacks; texts that a message quotes are in one line."""

    def format(self, record: logging.LogRecord) -> str:
        safe = copy.copy(record)
        if isinstance(record.args, tuple):
            safe.args = tuple(printable(each) if isinstance(each, str) else each for each in record.args)
        return printable(redact_within(super().format(safe)), kept="\n\t")


def start_logging() -> None:
    """Log messages go to stderr with the time of day."""
    handler = logging.StreamHandler()
    handler.setFormatter(_SafeFormatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def run_job(
    main: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None, own_process: bool = False
) -> NoReturn:
    """Run a job and leave the process with its exit code; the only ``sys.exit`` of a job.

    An :class:`IdcError` is one clear message and its own exit code, SIGINT and SIGTERM are 130, anything else is a
    bug: traceback and 1.

    Args:
        main: the job.
        argv: its arguments; None: the process's.
        own_process: whether the process is there for the job only. It is then ended at once after a signal.
    """
    given = sys.argv[1:] if argv is None else argv
    # The same command with --overwrite would discard what was finished.
    how = CONTINUE + (WITHOUT if any(token.startswith("--overwrite") for token in given) else "")
    try:
        with interruptible(how):
            try:
                code = main(given)
            except KeyboardInterrupt as error:
                code = _stopped(error, how, own_process or is_submitted())
        sys.stdout.flush()
    except KeyboardInterrupt as error:  # raised outside the inner block
        code = _stopped(error, how, own_process)
    except IdcError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:  # the reader has closed the pipe, as in `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception:
        print(printable(redact_within(traceback.format_exc()), kept="\n\t"), file=sys.stderr, end="")
        code = 1
    gc.freeze()  # else the end of the process takes one to two seconds to walk through the modules of torch and Ray
    sys.exit(code)


def _stopped(error: KeyboardInterrupt, how: str, at_once: bool) -> int:
    """Say that a signal ended the job. All that matters is written and closed by now."""
    print(str(error) or f"interrupted; {how}", file=sys.stderr)
    if at_once:
        end_process(Interrupted.exit_code)
    return Interrupted.exit_code


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises its errors as :class:`BadRequest`."""

    def error(self, message: str) -> NoReturn:
        # argparse would print its whole usage, a screen of options, and exit by itself.
        raise BadRequest(f"{message}; see {self.prog} --help")


class _Print(argparse.Action):
    """Print ``const`` and exit, as argparse's own ``help`` action does with the whole help."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(self.const)
        parser.exit()


def _parser(settings: dict[str, Setting], description: str, program: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=program,
        description=f"{description}\n\nSettings may be written with - or _; --no-NAME turns a switch off.",
        usage="%(prog)s [--config FILE] [--SETTING VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # only what was given overrides the file
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--help-all", action="help", help="show all settings and exit")
    parser.add_argument("--config", metavar="FILE", default=None, help="YAML file of settings; options win over it")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, setting in settings.items():
        group = groups.setdefault(setting.section, parser.add_argument_group(setting.section or "settings"))
        option = name.replace("_", "-")
        text = f"{setting.field.description or ''} (default: {default_text(setting)})".replace("%", "%%")
        if setting.field.annotation is bool:
            group.add_argument(f"--{option}", dest=name, nargs="?", const="true", metavar="true|false", help=text)
            group.add_argument(f"--no-{option}", dest=name, action="store_const", const="false", help=argparse.SUPPRESS)
        else:
            group.add_argument(f"--{option}", dest=name, metavar=metavar(setting), help=text)
    return parser


def _normalised(argv: Sequence[str], settings: Collection[str]) -> list[str]:
    """Options by their current names, with dashes for underscores; values stay."""

    def option(token: str) -> str:
        given, equals, value = token.partition("=")
        name = current_name(given.removeprefix("--").replace("-", "_"), settings)
        return f"--{name.replace('_', '-')}{equals}{value}"

    return [option(token) if re.match(r"--\w", token) else token for token in argv]


def _refuse(model: type[BaseModel], token: str) -> NoReturn:
    if not token.startswith("-"):
        fix = (
            f"did you mean --input {token}?" if "input" in model.model_fields else "settings are given as --NAME VALUE"
        )
        raise BadRequest(f"unexpected argument {token!r}; {fix}")
    name = token.lstrip("-").partition("=")[0].replace("-", "_")
    raise unknown_setting(model, name)


def _is_text(kind: Any) -> bool:
    return kind is str or (get_origin(kind) is Literal and isinstance(get_args(kind)[0], str))


def _value(setting: Setting, text: str) -> object:
    """A value as the setting's type asks: text as it stands (``[a-z]*.png`` is no list), the rest as YAML.

    Raises:
        BadRequest: it looks like a list and is none.
    """
    kinds = kinds_of(setting)
    if type(None) in kinds and text in ("null", "None", "none"):
        return None
    if any(_is_text(kind) for kind in kinds):
        return text
    texts = any(get_origin(kind) is tuple and _is_text(base_type(get_args(kind)[0])) for kind in kinds)
    if texts and not text.startswith("["):
        return text  # one of several: "photos #2" is no comment, nor 2024 a number
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        if texts and _looks_like_a_list(text):
            raise BadRequest(
                f"--{setting.name.replace('_', '-')} is {text!r}, which looks like a list but is not valid "
                """YAML; put each part into quotes: "['A [1]', 'B']" (for a single name too: "['[A]']")"""
            ) from None
        return text  # the typed check names the setting and what it expects


def _looks_like_a_list(text: str) -> bool:
    """Not a pattern such as ``[a-z]*.png``."""
    return text.endswith("]") or "]" not in text
