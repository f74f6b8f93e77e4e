"""The selective scan of Mamba (Gu and Dao 2023, arXiv 2312.00752, section 3.2) in plain torch, on any device.

For every channel d and state n, along the positions t:

    h[t] = exp(delta[t] a) h[t-1] + delta[t] b[t] x[t]        y[t] = sum over n of c[t] h[t]

A literal implementation takes one Python step for each position. This one is a parallel prefix sum by odd-even
reduction (Blelloch 1990): neighbours are combined in pairs, which leaves the same recurrence over half of the
positions, and so on; then the skipped positions are filled in. L positions take 3 log2(L) operations, together as much
work as a constant number of passes over the states. Only numbers in (0, 1] are multiplied, so nothing overflows. The
backward pass is the transposed recurrence, from the end to the start, with the same products of decays; it recomputes
the states, as storing them would take d_state times the memory of the input. Nothing depends on values on the host, so
a CUDA graph can capture it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

#: Positions scanned at a time, which bounds the states in memory. The last bits of scans longer than this depend on it.
SEGMENT = 4096

#: The same on a CPU, where a shorter segment stays in the cache and an operation has little overhead.
CPU_SEGMENT = 512


def selective_scan(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, delta_bias: Tensor
) -> Tensor:
    """Scan along L, with step sizes softplus(delta + delta_bias), and add ``skip * x``.

    Computed in float32, or float64 if ``x`` is, also under autocast: an 8-bit mantissa is too short for products of
    thousands of decays. On CUDA, `mamba_ssm`'s kernel is used if it is installed, except for float64, which it does
    not support, and with deterministic algorithms, as its gradients are not reproducible.

    Args:
        x: (B, L, D) input.
        delta: (B, L, D) step sizes before the softplus.
        a: (D, N) rates, negative.
        b: (B, L, N) input weights of the states.
        c: (B, L, N) output weights of the states.
        skip: (D,) factor of the skip connection.
        delta_bias: (D,) added to ``delta``.

    Returns:
        (B, L, D), in the type of the computation. Differentiable once, in all arguments.
    """
    with torch.autocast(x.device.type, enabled=False):
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, delta, a, b, c, skip, delta_bias = (v.to(dtype) for v in (x, delta, a, b, c, skip, delta_bias))
        kernel = _kernel(x)
        if kernel is not None:
            x, delta, b, c = (v.transpose(1, 2).contiguous() for v in (x, delta, b, c))
            y: Tensor = kernel(x, delta, a, b, c, skip, delta_bias=delta_bias, delta_softplus=True)
            return y.transpose(1, 2)
        return _Scan.apply(x, softplus(delta + delta_bias), a.t(), b, c, skip)


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
    """y of the recurrence plus ``skip * x``, for positive ``delta`` and ``a`` of (N, D); states are (B, L, N, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> Tensor:
        a = a.contiguous()
        y = x * skip
        state = x.new_zeros(x.shape[0], *a.shape)
        starts = []
        for part in _segments(x):
            starts.append(state)
            states, _, _ = _run(x[:, part], delta[:, part], a, b[:, part], state)
            y[:, part].add_(_read(states, c[:, part]))
            state = states[:, -1].clone()  # a view would keep all states of the segment alive
        ctx.save_for_backward(x, delta, a, b, c, skip, *starts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, ...]:
        x, delta, a, b, c, skip, *starts = ctx.saved_tensors
        grad_x = grad_y * skip
        grad_delta, grad_b, grad_c = (torch.empty_like(v) for v in (delta, b, c))
        grad_a = torch.zeros_like(a)
        after = torch.zeros_like(starts[0])
        with torch.autocast(x.device.type, enabled=False):
            for part, start in reversed(list(zip(_segments(x), starts, strict=True))):
                xs, ds, bs, cs, gs = (v[:, part] for v in (x, delta, b, c, grad_y))
                states, decay, links = _run(xs, ds, a, bs, start)
                # d loss / d states: from this position's output, and from later positions.
                flow = cs.unsqueeze(-1) * gs.unsqueeze(-2)
                flow[:, -1].add_(after)
                _scan_backward_(links, flow)
                after = decay[:, 0] * flow[:, 0]
                into = _read(flow, bs)
                grad_x[:, part].addcmul_(into, ds)
                grad_b[:, part] = _project(flow, ds * xs)
                grad_c[:, part] = _project(states, gs)
                # d loss / d (delta a), in place of decay: flow * decay * previous state.
                decay.mul_(flow)
                decay[:, 1:].mul_(states[:, :-1])
                decay[:, 0].mul_(start)
                grad_delta[:, part] = torch.mul(decay, a, out=flow).sum(-2).addcmul_(into, xs)
                grad_a += decay.mul_(ds.unsqueeze(-2)).sum((0, 1))
        return grad_x, grad_delta, grad_a, grad_b, grad_c, (grad_y * x).sum((0, 1))


def _segments(x: Tensor) -> list[slice]:
    size = min(SEGMENT, CPU_SEGMENT) if x.device.type == "cpu" else SEGMENT
    return [slice(start, start + size) for start in range(0, x.shape[1], size)]


def _run(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, start: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """States and decays (B, L, N, D) of a segment that starts from the state ``start`` (B, N, D), and the links."""
    decay = (delta.unsqueeze(-2) * a).exp_()
    states = b.unsqueeze(-1) * (delta * x).unsqueeze(-2)
    states[:, 0].addcmul_(decay[:, 0], start)
    links = _links(decay)
    _scan_(links, states)
    return states, decay, links


def _links(decay: Tensor) -> list[Tensor]:
    """Decay from each position to the next, at one level for all positions, every second, every fourth, and so on.

    The odd positions of one level (the second, the fourth, ...) are the positions of the next.
    """
    levels = []
    links = decay[:, 1:]
    while links.shape[1]:
        levels.append(links)
        following = links[:, 2::2]
        links = links[:, 1::2][:, : following.shape[1]] * following
    return levels


def _scan_(levels: list[Tensor], value: Tensor) -> None:
    """In place, along time: value[t] += link[t-1] value[t-1], with value[t-1] already updated."""
    if not levels:
        return
    links, *coarser = levels
    even, odd = value[:, 0::2], value[:, 1::2]
    odd.addcmul_(links[:, 0::2], even[:, : odd.shape[1]])
    _scan_(coarser, odd)
    later = even[:, 1:]
    later.addcmul_(links[:, 1::2], odd[:, : later.shape[1]])


def _scan_backward_(levels: list[Tensor], value: Tensor) -> None:
    """In place, against time: value[t] += link[t] value[t+1]. The steps of :func:`_scan_`, transposed and reversed."""
    if not levels:
        return
    links, *coarser = levels
    even, odd = value[:, 0::2], value[:, 1::2]
    later = even[:, 1:]
    odd[:, : later.shape[1]].addcmul_(links[:, 1::2], later)
    _scan_backward_(coarser, odd)
    even[:, : odd.shape[1]].addcmul_(links[:, 0::2], odd)


def _read(states: Tensor, weights: Tensor) -> Tensor:
    """Sum over N: (..., N, D) and (..., N) to (..., D)."""
    return (weights.unsqueeze(-2) @ states).squeeze(-2)


def _project(states: Tensor, channels: Tensor) -> Tensor:
    """Sum over D: (..., N, D) and (..., D) to (..., N)."""
    return (states @ channels.unsqueeze(-1)).squeeze(-1)
