from __future__ import annotations

import pytest
import torch
from torch import Tensor

from idc_ray.models import window_attention as module
from idc_ray.models.permutation import reorder
from idc_ray.models.window_attention import attend, position_biases, relative_position_index, shift_mask, windows_of


def literal(qkv: Tensor, table: Tensor, window: int, shift: int) -> Tensor:
    """Pixel by pixel: it sees the pixels of its window that are really near, and not across the border."""
    batch, height, width, channels = qkv.shape[0], *qkv.shape[1:3], qkv.shape[3] // 3
    heads = table.shape[1]
    size = channels // heads
    out = torch.empty(batch, height, width, channels, dtype=qkv.dtype)
    pixels = [(y, x) for y in range(height) for x in range(width)]

    def storage(y: int, x: int) -> tuple[int, int]:
        # Windows at the border are cut by it: with a shift there is one more of them than without, the first short.
        return (y - shift) // window, (x - shift) // window

    for image in range(batch):
        for y, x in pixels:
            seen = [(j, i) for j, i in pixels if storage(j, i) == storage(y, x)]
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                q, k, v = qkv[image].split(channels, -1)
                scores = torch.stack(
                    [
                        q[y, x, part] @ k[j, i, part] / size**0.5
                        + table[(y - j + window - 1) * (2 * window - 1) + x - i + window - 1, head]
                        for j, i in seen
                    ]
                )
                values = torch.stack([v[j, i, part] for j, i in seen])
                out[image, y, x, part] = scores.softmax(0) @ values
    return out


def in_windows(qkv: Tensor, table: Tensor, window: int, shifted: bool) -> Tensor:
    """As networks do it: into the order of the windows, attention, back."""
    windows = windows_of(qkv.shape[1], qkv.shape[2], window, qkv.device)
    order, mask = (windows.shifted, windows.mask) if shifted else (windows.plain, None)
    ordered = reorder(qkv.flatten(1, 2), order).unflatten(1, windows.mask.shape[:2])
    out = attend(ordered, position_biases(table, window), mask)
    return reorder(out.flatten(1, 2), order.back).unflatten(1, qkv.shape[1:3])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("height", "width"), [(4, 8), (8, 12), (4, 4)])
def test_it_is_attention_among_the_pixels_of_a_window(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, shifted: bool, fused: bool
) -> None:
    """Catches swapped rows and columns, mixed up heads, and pixels that see each other around the border."""
    monkeypatch.setattr(module, "_can_be_fused", lambda _: fused)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn((2, height, width, 18), generator=generator, dtype=torch.float64)
    table = torch.randn((49, 2), generator=generator, dtype=torch.float64)
    torch.testing.assert_close(in_windows(qkv, table, 4, shifted), literal(qkv, table, 4, 2 * shifted))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_fused_attention_has_the_gradients_of_the_explicit_one(
    monkeypatch: pytest.MonkeyPatch, shifted: bool, dtype: torch.dtype, tolerance: float
) -> None:
    """Heads of 5 channels have to be padded; catches padding that takes part, and a table without a gradient."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn((2, 8, 12, 30), generator=generator).requires_grad_()
    table = torch.randn((49, 2), generator=generator).requires_grad_()
    weights = torch.randn((2, 8, 12, 10), generator=generator)

    def results(fused: bool, dtype: torch.dtype) -> tuple[Tensor, ...]:
        monkeypatch.setattr(module, "_can_be_fused", lambda _: fused)
        out = in_windows(qkv.to(dtype), table, 4, shifted).float()
        return out.detach(), *torch.autograd.grad((out * weights).sum(), (qkv, table))

    for found, expected in zip(results(True, dtype), results(False, torch.float32), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_fused_attention_gets_what_its_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches head sizes for which torch would fall back to more memory and time than before, with no word about it:
    vectors of 16 bytes, four dimensions, and a bias that is not copied for each image."""
    seen: list[tuple[Tensor, ...]] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
        seen.append((q, k, v, bias))
        return v

    monkeypatch.setattr(module, "scaled_dot_product_attention", spy)
    monkeypatch.setattr(module, "_can_be_fused", lambda _: True)
    mask = shift_mask(16, 24, 8, 4)
    for dtype in (torch.float32, torch.bfloat16):
        for heads, size in ((6, 10), (4, 12)):  # SwinIR-light's and MambaIRv2-light's
            for given in (None, mask):
                out = attend(torch.zeros(2, 6, 64, 3 * heads * size, dtype=dtype), torch.zeros(heads, 64, 64), given)
                assert out.shape == (2, 6, 64, heads * size)
    for q, k, v, bias in seen:
        assert q.shape == k.shape == v.shape
        assert q.ndim == 4
        assert bias.shape == (q.shape[1], 64, 64)
        assert bias.dtype == q.dtype
        for x in (q, k, v):
            assert x.shape[-1] * x.element_size() % 16 == 0
            assert x.storage_offset() * x.element_size() % 16 == 0
            assert x.stride(-1) == 1


def test_the_fused_kernel_is_for_cuda_and_for_what_its_grid_holds() -> None:
    """Catches an invalid attempt on a large image, which the explicit steps take."""

    class Shaped:
        def __init__(self, is_cuda: bool, batch: int, windows: int, heads: int) -> None:
            self.is_cuda, self.shape = is_cuda, (3, batch, windows, heads, 64, 10)

    def fused(*arguments: int) -> bool:
        return module._can_be_fused(Shaped(*arguments))  # type: ignore[arg-type]

    assert fused(True, 64, 64, 6)
    assert not fused(False, 64, 64, 6)
    assert fused(True, 1, 10_922, 6)
    assert not fused(True, 1, 10_923, 6)
    assert not fused(True, 64, 1024, 6)


@pytest.mark.parametrize("window", [1, 2, 5, 8])
def test_position_biases_have_the_published_index(window: int) -> None:
    """For several layers at once, with the gradients that indexing has; catches a transposed or mirrored table."""
    generator = torch.Generator().manual_seed(0)
    tables = torch.randn((3, (2 * window - 1) ** 2, 2), generator=generator, dtype=torch.float64).requires_grad_()
    biases = position_biases(tables, window)
    expected = tables[:, relative_position_index(window)].permute(0, 3, 1, 2)
    assert torch.equal(biases, expected)
    weights = torch.randn(biases.shape, generator=generator, dtype=torch.float64)
    found, wanted = (torch.autograd.grad((b * weights).sum(), tables)[0] for b in (biases, expected))
    torch.testing.assert_close(found, wanted)


def test_the_shift_leads_from_plain_to_shifted_windows() -> None:
    windows = windows_of(8, 12, 4, torch.device("cpu"))
    x = torch.randn((2, 96, 3), generator=torch.Generator().manual_seed(0))
    plain, shifted = reorder(x, windows.plain), reorder(x, windows.shifted)
    assert torch.equal(reorder(plain, windows.shift), shifted)
    assert torch.equal(reorder(shifted, windows.shift.back), plain)
    # The first shifted window begins two down and two right.
    assert torch.equal(shifted[:, :2], x[:, [2 * 12 + 2, 2 * 12 + 3]])
