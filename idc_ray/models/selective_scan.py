"""The selective scan of Mamba (Gu and Dao 2023, arXiv 2312.00752, section 3.2) in plain torch, on any device.

For every channel d and state n, along the positions t:

    h[t] = exp(delta[t] a) h[t-1] + delta[t] b[t] x[t]        y[t] = sum over n of c[t] h[t]

Taken literally that is one step of Python a position. Here the positions are cut into chunks, about as many
as each is long: all chunks advance together as if each began at zero, then the state that each hands to the
next is found, then added, decayed, to all positions: some 3 sqrt(L) steps for L positions. Only products of
numbers in (0, 1] occur, so nothing overflows however long the scan is. The backward pass is the same
recurrence run from the end; it computes the states again instead of keeping them, which would take
d_state times the memory of the input.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad, softplus

__all__ = ["selective_scan"]

#: Positions scanned at a time; the states of no more than these are in memory. Part of the arithmetic: the last
#: bits of a longer scan depend on it, those of a shorter one do not.
SEGMENT = 4096


def selective_scan(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, delta_bias: Tensor
) -> Tensor:
    """Scan along L, with step sizes softplus(delta + delta_bias), and add ``skip * x``.

    Computed in float32, or float64 if ``x`` is, also under autocast: products of thousands of decays do not
    survive 8 bits of mantissa. On CUDA, `mamba_ssm`'s kernel is used if it is installed and can be: it takes no
    float64, and its gradients are not reproducible, so not where deterministic algorithms are asked for.

    Args:
        x: (B, L, D) input.
        delta: (B, L, D) step sizes before the softplus.
        a: (D, N) rates, negative.
        b: (B, L, N) what of the input enters the states.
        c: (B, L, N) what of the states is read.
        skip: (D,) factor of the direct path.
        delta_bias: (D,) added to ``delta``.

    Returns:
        (B, L, D), in the type it was computed in. Once differentiable in everything.
    """
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, delta, a, b, c, skip, delta_bias = (v.to(dtype) for v in (x, delta, a, b, c, skip, delta_bias))
        kernel = _kernel(x)
        if kernel is not None:
            x, delta, b, c = (v.transpose(1, 2).contiguous() for v in (x, delta, b, c))
            y: Tensor = kernel(x, delta, a, b, c, skip, delta_bias=delta_bias, delta_softplus=True)
            return y.transpose(1, 2)
        return torch.addcmul(_Scan.apply(x, softplus(delta + delta_bias), a.t(), b, c), skip, x)


def _kernel(x: Tensor) -> Callable[..., Tensor] | None:
    if not x.is_cuda or x.dtype != torch.float32 or torch.are_deterministic_algorithms_enabled():
        return None
    return _installed_kernel()


@functools.cache
def _installed_kernel() -> Callable[..., Tensor] | None:
    """`mamba_ssm`'s CUDA scan; None if it is not installed, or was built for another torch."""
    try:
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except (ImportError, OSError, AttributeError):
        return None


class _Scan(torch.autograd.Function):
    """y of the recurrence. ``delta`` is positive here, and ``a`` (N, D): states are (..., N, D) inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        a = a.contiguous()
        y = torch.empty_like(x)
        state = x.new_zeros(x.shape[0], *a.shape)
        starts = []
        for part in _segments(x.shape[1]):
            starts.append(state)
            length, cs = x[:, part].shape[1], _chunks(c[:, part])
            _, states = _run(_chunks(x[:, part]), _chunks(delta[:, part]), a, _chunks(b[:, part]), state)
            y[:, part] = _positions(_read(states, cs), length)
            state = states[-1, -1].clone()  # a view would keep all states of the segment alive
        ctx.save_for_backward(x, delta, a, b, c, *starts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
        x, delta, a, b, c, *starts = ctx.saved_tensors
        grads = [torch.empty_like(v) for v in (x, delta, b, c)]
        grad_a = torch.zeros_like(a)
        after = torch.zeros_like(starts[0])
        with torch.autocast(x.device.type, enabled=False):
            for part, start in reversed(list(zip(_segments(x.shape[1]), starts, strict=True))):
                xs, ds, bs, cs, gs = (_chunks(v[:, part]) for v in (x, delta, b, c, grad_y))
                decay, states = _run(xs, ds, a, bs, start)
                inflow = ds * xs
                # d loss / d states: what is read here, and what flows on to later positions.
                flow = cs.unsqueeze(-1) * gs.unsqueeze(-2)
                _scan_backward_(decay, flow, _total_decay(ds, a), after)
                after = decay[0, 0] * flow[0, 0]
                into = _read(flow, bs)
                # d loss / d (delta a), in decay's place: flow * decay * the state before.
                decay.mul_(flow)
                decay[1:].mul_(states[:-1])
                decay[0, 1:].mul_(states[-1, :-1])
                decay[0, 0].mul_(start)
                grad_a += torch.einsum("tkbnd,tkbd->nd", decay, ds)
                of_part = (
                    into * ds,
                    into * xs + torch.einsum("tkbnd,nd->tkbd", decay, a),
                    _project(flow, inflow),
                    _project(states, gs),
                )
                for grad, value in zip(grads, of_part, strict=True):
                    grad[:, part] = _positions(value, grad[:, part].shape[1])
        grad_x, grad_delta, grad_b, grad_c = grads
        return grad_x, grad_delta, grad_a, grad_b, grad_c


def _segments(length: int) -> list[slice]:
    return [slice(start, start + SEGMENT) for start in range(0, length, SEGMENT)]


def _chunks(x: Tensor) -> Tensor:
    """(B, L, C) to (steps, chunks, B, C), zeros at the end: a step of size zero leaves the state as it is."""
    steps = math.isqrt(x.shape[1] - 1) + 1
    chunks = -(-x.shape[1] // steps)
    x = pad(x, (0, 0, 0, steps * chunks - x.shape[1]))
    return x.unflatten(1, (chunks, steps)).permute(2, 1, 0, 3).contiguous()


def _positions(x: Tensor, length: int) -> Tensor:
    """The inverse of :func:`_chunks`."""
    return x.permute(2, 1, 0, 3).flatten(1, 2)[:, :length]


def _run(xs: Tensor, ds: Tensor, a: Tensor, bs: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Decays and states (steps, chunks, B, N, D) of a segment that begins with the state ``start`` (B, N, D)."""
    decay = (ds.unsqueeze(-2) * a).exp_()
    states = bs.unsqueeze(-1) * (ds * xs).unsqueeze(-2)
    _scan_(decay, states, _total_decay(ds, a), start)
    return decay, states


def _total_decay(ds: Tensor, a: Tensor) -> Tensor:
    """Product of each chunk's decays, (chunks, B, N, D)."""
    return (ds.sum(0).unsqueeze(-2) * a).exp_()


def _scan_(decay: Tensor, value: Tensor, total: Tensor, start: Tensor) -> None:
    """In place along time: value[t] += decay[t] value[t-1], before the first of which stands ``start``."""
    steps, chunks = value.shape[:2]
    for t in range(1, steps):
        value[t].addcmul_(decay[t], value[t - 1])
    entering = torch.empty_like(total)
    entering[0] = start
    for k in range(1, chunks):
        torch.addcmul(value[-1, k - 1], total[k - 1], entering[k - 1], out=entering[k])
    for t in range(steps):
        value[t].add_(entering.mul_(decay[t]))


def _scan_backward_(decay: Tensor, value: Tensor, total: Tensor, after: Tensor) -> None:
    """In place against time: value[t] += decay[t+1] value[t+1]; ``after`` is that product beyond the last."""
    steps, chunks = value.shape[:2]
    for t in reversed(range(steps - 1)):
        value[t].addcmul_(decay[t + 1], value[t + 1])
    entering = decay[0] * value[0]
    entering = torch.cat((entering[1:], after[None]))
    for k in reversed(range(chunks - 1)):
        entering[k].addcmul_(total[k + 1], entering[k + 1])
    for t in reversed(range(steps)):
        value[t].add_(entering)
        entering.mul_(decay[t])


def _read(states: Tensor, weights: Tensor) -> Tensor:
    """Sum over N: (..., N, D) and (..., N) to (..., D)."""
    return (weights.unsqueeze(-2) @ states).squeeze(-2)


def _project(states: Tensor, channels: Tensor) -> Tensor:
    """Sum over D: (..., N, D) and (..., D) to (..., N)."""
    return (states @ channels.unsqueeze(-1)).squeeze(-1)
