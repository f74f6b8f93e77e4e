"""``idc-ray completion``: shell completion scripts, generated from the configurations.

A generated script is fast and needs no package. A completer that runs Python, such as argcomplete, would import
pydantic and the configurations, about half a second, each time the Tab key is pressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args, get_origin

from idc_ray.cli import Parser
from idc_ray.commands import COMMANDS, configuration
from idc_ray.config import Setting, settings_of
from idc_ray.help_text import kinds_of

SHELLS = ("bash", "zsh", "fish")

#: Options of the commands that have no configuration.
OTHERS: dict[str, dict[str, tuple[str, ...] | None]] = {
    "status": {"--json": None, "--watch": None},
    "report": {"--output": (), "--images": (), "--include": (), "--figures": (), "--no-sources": None},
    "verify": {"--repair": None, "--deep": None, "--json": None},
}


def main(argv: Sequence[str]) -> int:
    """Parse the arguments and print the script."""
    parser = Parser(
        prog="idc-ray completion",
        description=f"{COMMANDS['completion']} Add to ~/.bashrc: source <(idc-ray completion bash); to ~/.zshrc, after "
        "compinit: source <(idc-ray completion zsh); to ~/.config/fish/config.fish: idc-ray completion fish | source",
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(argv).shell
    print(_fish() if shell == "fish" else _bash() if shell == "bash" else _zsh(), end="")
    return 0


def _options(command: str) -> dict[str, tuple[str, ...] | None]:
    """Options of a command with their choices: an empty tuple for any value, None for an option without value."""
    options: dict[str, tuple[str, ...] | None] = {"--help": None}
    model = configuration(command)
    if model is None:
        return options | OTHERS.get(command, {})
    options |= {"--help-all": None, "--config": ()}
    for setting in settings_of(model):
        name = setting.name.replace("_", "-")
        if setting.field.annotation is bool:
            options |= {f"--{name}": None, f"--no-{name}": None}
        else:
            options[f"--{name}"] = _choices(setting)
    return options


def _choices(setting: Setting) -> tuple[str, ...]:
    return tuple(str(choice) for kind in kinds_of(setting) if get_origin(kind) is Literal for choice in get_args(kind))


def _bash() -> str:
    commands, values = "", ""
    for command in COMMANDS:
        options = _options(command)
        words = " ".join(SHELLS) if command == "completion" else ""
        commands += f'    {command}) options="{" ".join(options)}"; words="{words}" ;;\n'
        for option, choices in options.items():
            if choices:
                values += f'    "{command} {option}") words="{" ".join(choices)}"; options="" ;;\n'
    return f"""\
# Completion of idc-ray for bash.
_idc_ray() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" options="" words=""
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{" ".join(COMMANDS)} --help --version" -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{commands}  esac
  case "${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD-1]}}" in
{values}  esac
  case "$current" in
    -*) COMPREPLY=($(compgen -W "$options" -- "$current")) ;;
    *) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;
  esac
}}
complete -o default -F _idc_ray idc-ray
"""


def _zsh() -> str:
    return f"autoload -U +X bashcompinit && bashcompinit\n{_bash()}"


def _fish() -> str:
    lines = ["# Completion of idc-ray for fish."]
    for command, text in COMMANDS.items():
        lines.append(f"complete -c idc-ray -f -n __fish_use_subcommand -a {command} -d '{text}'")
        given = f"complete -c idc-ray -n '__fish_seen_subcommand_from {command}'"
        if command == "completion":
            lines.append(f"{given} -f -a '{' '.join(SHELLS)}'")
        for option, choices in _options(command).items():
            value = "" if choices is None else f" -x -a '{' '.join(choices)}'" if choices else " -r"
            lines.append(f"{given} -l {option.removeprefix('--')}{value}")
    return "\n".join(lines) + "\n"
