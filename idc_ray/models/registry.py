"""Registry of networks: the names that ``--model`` and a checkpoint's metadata use.

An *architecture* (``edsr``) is a class with arguments; a *model* (``edsr_small``) is an architecture with given
arguments. A checkpoint stores the architecture and its arguments, so a model may be renamed.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import nn

from idc_ray.errors import BadRequest

Argument = int | float | str | bool
Network = TypeVar("Network", bound=type[nn.Module])
SpecMaker = Callable[[int], "ModelSpec"]

_ARCHITECTURES: dict[str, type[nn.Module]] = {}
_MODELS: dict[str, SpecMaker] = {}


@dataclass(frozen=True)
class ModelSpec:
    """Architecture and arguments of a network, without its weights.

    Attributes:
        architecture: registered name of the class.
        scale: upscaling factor.
        arguments: the class's other arguments, JSON values.
    """

    architecture: str
    scale: int
    arguments: Mapping[str, Argument] = field(default_factory=dict)

    def __str__(self) -> str:
        """For messages: ``edsr x2 (blocks 4, channels 32)``."""
        arguments = ", ".join(f"{name} {value}" for name, value in sorted(self.arguments.items()))
        return f"{self.architecture} x{self.scale} ({arguments})"

    def build(self) -> nn.Module:
        """The network, with weights initialised by torch's global generator.

        Raises:
            BadRequest: unknown architecture, unknown or invalid argument, or unsupported scale.
        """
        network = _lookup(_ARCHITECTURES, self.architecture, "architecture")
        try:
            inspect.signature(network).bind(scale=self.scale, **self.arguments)
        except TypeError as error:
            raise BadRequest(f"architecture {self.architecture!r} with {dict(self.arguments)}: {error}") from None
        try:
            return network(scale=self.scale, **self.arguments)
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:  # as for a width of -1
            raise BadRequest(f"architecture {self.architecture!r} with {dict(self.arguments)}: {error}") from None


def register_architecture(name: str) -> Callable[[Network], Network]:
    """Class decorator that registers a network, whose first argument is ``scale``, under a name for checkpoints."""

    def register(network: Network) -> Network:
        _add(_ARCHITECTURES, name, network)
        return network

    return register


def register_model(maker: SpecMaker) -> SpecMaker:
    """Decorator that registers a function from scale to :class:`ModelSpec` as a model, under the function's name."""
    _add(_MODELS, maker.__name__, maker)
    return maker


def list_models(pattern: str = "*") -> list[str]:
    """Sorted names of the registered models that match a shell pattern, such as ``edsr*``.

    Example:
        >>> import idc_ray
        >>> "edsr_small" in idc_ray.list_models("edsr*")
        True
    """
    return sorted(name for name in _MODELS if fnmatchcase(name, pattern))


def model_spec(name: str, scale: int) -> ModelSpec:
    """The spec of a named model.

    Raises:
        BadRequest: no such model; the message suggests similar names.
    """
    return _lookup(_MODELS, name, "model")(scale)


def create_model(name: str, scale: int) -> nn.Module:
    """Create a model with weights initialised by torch's global generator.

    Args:
        name: one of :func:`list_models`.
        scale: 1, 2, 3 or 4.

    Returns:
        A module that maps RGB (B, 3, h, w) in [0, 1] to (B, 3, scale h, scale w).

    Raises:
        BadRequest: no such model (the message suggests similar names), or an unsupported scale.

    Example:
        >>> import idc_ray, torch
        >>> model = idc_ray.create_model("edsr_small", scale=2)
        >>> model(torch.zeros(1, 3, 24, 32)).shape
        torch.Size([1, 3, 48, 64])
    """
    return model_spec(name, scale).build()


def nearest(name: str, known: Iterable[str]) -> str:
    """End of an error message: the names most similar to ``name``, or all names if none is similar."""
    known = list(known)
    close = difflib.get_close_matches(name, known, 3, 0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"expected one of: {', '.join(sorted(known))}"


Value = TypeVar("Value")


def _lookup(table: Mapping[str, Value], name: str, kind: str) -> Value:
    if name not in table:
        raise BadRequest(f"no {kind} is named {name!r}; {nearest(name, table)}")
    return table[name]


def _add(table: dict[str, Any], name: str, value: object) -> None:
    if name in table:
        raise ValueError(f"{name!r} is already registered, as {table[name]!r}")
    table[name] = value
