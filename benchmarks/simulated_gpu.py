"""A device that exists only in this process, to count the waits for a GPU and find tensors on the wrong device.

Tensors of the device ``SIMULATED`` are computed on the CPU, but cannot be read, indexed with or combined with host
tensors unless they are copied, as on a GPU. Operations that would make the host wait for a GPU are counted by name:

    with simulated_gpu() as counts:
        condenser = load_condenser(config, teacher, SIMULATED)
        counts.reset()
        condenser.condense([task])
    print(counts.waits, counts.launches)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

__all__ = ["SIMULATED", "Counts", "simulated_gpu"]

#: The device of simulated tensors: of torch's devices the one that needs no driver and whose own tensors hold nothing.
SIMULATED = torch.device("meta")

aten = torch.ops.aten

#: Operations whose result or its shape depends on values: torch waits for the GPU in each.
WAITING = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten.unique_dim,
    aten._unique,
    aten._unique2,
}

#: Operations that have no kernel.
FREE = {aten.empty, aten.empty_strided, aten.empty_like, aten.new_empty, aten.new_empty_strided, aten.detach,
        aten.lift_fresh, aten._local_scalar_dense, aten.resize_}  # fmt: skip

#: Operations for which torch raises an error on a GPU where deterministic algorithms are asked for.
NOT_DETERMINISTIC = {aten.cumsum, aten.histc, aten.kthvalue, aten.median, aten.put_}


@dataclass
class Counts:
    """What happened on the simulated device.

    Attributes:
        waits: operations that wait for the GPU, by name.
        launches: kernels, about: operations that are not views.
        copies: copies between host and device.
    """

    waits: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    copies: int = 0

    def reset(self) -> None:
        """Start at zero again."""
        self.waits.clear()
        self.launches = self.copies = 0

    def add(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], moved: str) -> None:
        """Count one operation; ``moved``: ``to host``, ``to device`` or nothing."""
        packet = function.overloadpacket
        if moved:
            self.copies += 1
            if moved == "to host" or not (kwargs.get("non_blocking") or args[2:3] == (True,)):
                self.waits[f"copy {moved}"] += 1
        elif packet in WAITING:
            self.waits[packet.__name__] += 1
        elif packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            indices = [index for index in args[1] if index is not None]
            filled = packet is not aten.index and args[2].numel() == 1  # filling needs no list of places
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices) and not filled:
                self.waits["index by a mask"] += 1
            if not all(isinstance(index, _Simulated) for index in indices):
                self.waits["index from the host"] += 1
        elif packet is aten.repeat_interleave and kwargs.get("output_size") is None:
            self.waits["repeat_interleave"] += 1
        if not function.is_view and packet not in FREE:
            self.launches += 1


class _Simulated(Tensor):
    """A tensor on the simulated device, with its values in ``inner``, on the CPU."""

    inner: Tensor
    counts: ClassVar[Counts] = Counts()

    @staticmethod
    def __new__(cls, inner: Tensor) -> _Simulated:
        tensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=SIMULATED,
        )  # fmt: skip
        tensor.inner = inner
        return tensor  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the CPU; its results are where they would be on a machine with a GPU."""
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    inside, target = any(isinstance(each, _Simulated) for each in tensors), kwargs.get("device")
    to_device = target is not None and torch.device(target) == SIMULATED
    if not inside and not to_device:
        return function(*args, **kwargs)
    packet, moved = function.overloadpacket, ""
    if packet is aten._to_copy and target is not None and to_device != inside:
        moved = "to device" if to_device else "to host"
    elif packet is aten.copy_ and isinstance(args[0], _Simulated) != isinstance(args[1], _Simulated):
        moved = "to device" if isinstance(args[0], _Simulated) else "to host"
    elif packet in NOT_DETERMINISTIC and tensors[0].is_floating_point():
        raise RuntimeError(f"{packet} does not have a deterministic implementation on a GPU")
    elif inside and packet not in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        outside = [each for each in tensors if not isinstance(each, _Simulated) and each.dim() > 0]
        if outside:
            raise RuntimeError(f"{packet} of tensors on the device and on the host, {[each.shape for each in outside]}")
    _Simulated.counts.add(function, args, kwargs, moved)
    if to_device:
        kwargs = kwargs | {"device": torch.device("cpu")}
    out = function(*_unwrapped(args), **_unwrapped(kwargs))
    if function._schema.is_mutable:  # in place, or into ``out``
        return kwargs["out"] if "out" in kwargs else args[0]
    return out if moved == "to host" else tree_map_only(Tensor, _Simulated, out)


def _unwrapped(values: Any) -> Any:
    return tree_map_only(_Simulated, lambda each: each.inner, values)


class _Factories(TorchDispatchMode):
    """Operations without simulated arguments: what makes tensors, and copies to the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _FromLists(TorchFunctionMode):
    """Functions that torch does not run as operations on tensors of ``meta`` or of a subclass."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.new_tensor and isinstance(args[0], _Simulated):
            return torch.tensor(args[1], dtype=args[0].dtype).to(SIMULATED)
        if func == Tensor.tolist and isinstance(args[0], _Simulated):
            return args[0].cpu().tolist()
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == SIMULATED:
            return func(*args, **{key: value for key, value in kwargs.items() if key != "device"}).to(SIMULATED)
        return func(*args, **kwargs)


@contextmanager
def simulated_gpu() -> Iterator[Counts]:
    """Within this context, in this thread, ``SIMULATED`` is a device; yields what is counted on it."""
    _Simulated.counts = Counts()
    with _Factories(), _FromLists():
        yield _Simulated.counts
