"""Arrow schemas of dataclasses, so that the fields of a record are declared once."""

from __future__ import annotations

from dataclasses import fields
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

import pyarrow as pa

Int32 = Annotated[int, pa.int32()]

_TYPES = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    list[float]: pa.list_(pa.float64()),
    dict[str, float]: pa.map_(pa.string(), pa.float64()),
}


def schema_of(record: type) -> pa.Schema:
    """The schema with a column for each field of a dataclass.

    ``T | None`` has the type of ``T``, as every column can hold null; ``Annotated[T, pa.int32()]`` states the type.
    """
    hints = get_type_hints(record, include_extras=True)
    return pa.schema([(field.name, _type(hints[field.name])) for field in fields(record)])


def _type(hint: Any) -> pa.DataType:
    if hasattr(hint, "__metadata__"):
        return hint.__metadata__[0]
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    return _TYPES[hint] if hint in _TYPES else _type(*kinds)
