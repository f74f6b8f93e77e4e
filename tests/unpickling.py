"""A column type whose values are unpickled when they are read, as ``ray.data.arrow_pickled_object`` is."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

__all__ = ["pickled", "ran", "registered"]

#: What the pickles that were opened did.
ran: list[str] = []


class Payload:
    """Code that a stranger would like to run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _run, ()


def _run() -> None:
    ran.append("ran")


class _Scalar(pa.ExtensionScalar):
    def as_py(self, **_: Any) -> Any:
        return pickle.loads(self.value.as_py())


class _Pickled(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.binary(), "tests.pickled")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> _Pickled:
        return cls()

    def __arrow_ext_scalar_class__(self) -> type:
        return _Scalar


@contextmanager
def registered() -> Iterator[None]:
    """The type is known to Arrow, as Ray's are wherever Ray Data was imported."""
    ran.clear()
    pa.register_extension_type(_Pickled())
    try:
        yield
    finally:
        pa.unregister_extension_type("tests.pickled")


def pickled(rows: int = 1) -> pa.Array:
    """A column of such values; ``ran`` says whether one was read."""
    return pa.ExtensionArray.from_storage(_Pickled(), pa.array([pickle.dumps(Payload())] * rows, pa.binary()))
