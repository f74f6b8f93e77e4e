from __future__ import annotations

import torch

from idc_ray.condensation.seeding import generator, integer, uniform


def test_a_key_gives_the_number_it_always_gave() -> None:
    """Another hash, byte order or separator would change every result; Python's own hash differs by process."""
    assert integer(0, "0123456789abcdef", "start") == 5909195143893366656


def test_parts_of_a_key_are_not_run_together() -> None:
    """(1, 23) and (12, 3) are two images' streams, not one."""
    keys = [(1, 23), (12, 3), (123,), ("1", "2", "3"), (1, 23, ""), (23, 1)]
    assert len({integer(*key) for key in keys}) == len(keys)


def test_numbers_fit_a_signed_64_bit_seed_and_uniform_is_below_one() -> None:
    values = [integer(i) for i in range(2000)]
    assert all(0 <= value < 2**63 for value in values)
    shares = [uniform(i) for i in range(2000)]
    assert all(0 <= share < 1 for share in shares)
    assert abs(sum(shares) / 2000 - 0.5) < 0.03


def test_generators_do_not_see_or_move_the_global_state() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = torch.rand(4, generator=generator(0, "a"))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.rand(4, generator=generator(0, "a")), first)
    assert not torch.equal(torch.rand(4, generator=generator(1, "a")), first)
