"""Base of all configurations: strict sections, dotted names, result settings, the digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from idc_ray.redact import redact_all

PATH_FIELD = "path"
_T = TypeVar("_T")

#: ``PathField[str]`` is a path or a URI of something that a job reads or writes.
PathField = Annotated[_T, PATH_FIELD]


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str | int | float) else value


#: ``OneOrSeveral[int]`` is a tuple that may be given as one value.
OneOrSeveral = Annotated[tuple[_T, ...], BeforeValidator(_as_tuple)]


class Section(BaseModel):
    """A group of settings: typed, immutable, no unknown names, no NaN or infinity; docstrings are the help texts.

    Attributes:
        common: settings that ``--help`` of a command shows, with one-line texts.
    """

    common: ClassVar[dict[str, str]] = {}

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _reject_booleans(cls, value: object, info: ValidationInfo) -> object:
        # pydantic reads True as 1: `seed: yes` in YAML would pass unseen.
        if isinstance(value, bool) and info.field_name and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError("Input should be a number or text; YAML reads yes, no, true and false as booleans")
        return value

    def to_yaml(self, *, defaults: bool = True) -> str:
        """The settings as YAML that loads back to an equal configuration.

        Credentials in URIs are removed, as the text is printed, stored and tracked.

        Args:
            defaults: whether settings with default values are included; without them the text may be empty.
        """
        values = redact_all(self.model_dump(mode="json", exclude_defaults=not defaults))
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if values else ""

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        # Ray logs what its operators were given.
        for name, value in super().__repr_args__():
            yield name, redact_all(value) if isinstance(value, str | list | tuple) else value


@dataclass(frozen=True)
class Setting:
    """One leaf of a configuration.

    Attributes:
        name: dotted name, such as ``rlff.num_frequencies``.
        field: pydantic's description of it: type, default, text.
    """

    name: str
    field: FieldInfo

    @property
    def section(self) -> str:
        """Dotted name of its section; empty at the top level."""
        return self.name.rpartition(".")[0]


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """All leaves of ``model``, with those of nested sections, in the order of definition."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings_of(kind, f"{prefix}{name}.")
        else:
            yield Setting(prefix + name, field)


def path_settings(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and value of every path that is set, defaults included; one pair per path."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from path_settings(value, f"{prefix}{name}.")
        elif PATH_FIELD in field.metadata and value is not None:
            yield from ((prefix + name, each) for each in ((value,) if isinstance(value, str) else value))


def result_settings(config: BaseModel, method: type[BaseModel], younger: Collection[str] = ()) -> dict[str, Any]:
    """Values of the settings that affect the result, nested as in ``config``, as JSON values.

    Args:
        config: settings of a job.
        method: base class of its type that declares the result settings; so do its sections.
        younger: settings that are left out at their defaults, as digests in use are older than they are.
    """
    values: dict[str, Any] = TypeAdapter(method).dump_python(config, mode="json")
    for name in younger:
        default = method.model_fields[name].default
        if values[name] == (default.model_dump(mode="json") if isinstance(default, BaseModel) else default):
            del values[name]
    return values


def result_digest(settings: dict[str, Any]) -> str:
    """16 hex digits of the SHA-256 of canonical JSON: sorted keys, no spaces, floats as Python's shortest repr."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
