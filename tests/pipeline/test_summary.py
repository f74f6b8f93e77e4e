from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from idc_ray.pipeline.summary import KEPT_REASONS, SHOWN_REASONS, Summary
from idc_ray.units import size

BANDWIDTHS = (0.5, 2.0)


def record(**changes: Any) -> dict[str, Any]:
    return {
        "lr_height": 10,
        "lr_width": 100,
        "tiles": 1,
        "source_bytes": 1000,
        "kept_start": False,
        "loss_start": 0.4,
        "loss_end": 0.1,
        "bandwidth_loss_start": [0.6, 0.2],
        "bandwidth_loss_end": [0.1, 0.1],
        "seconds": [("read", 1.0), ("optimise", 3.0)],
        **changes,
    }


#: Of a method that optimises nothing.
WITHOUT_LOSS: dict[str, Any] = {
    "loss_start": None, "loss_end": None, "bandwidth_loss_start": [], "bandwidth_loss_end": [], "kept_start": None,
}  # fmt: skip


def summary(ratio: float = 0.1) -> Summary:
    return Summary(ratio, tile_pixels=100, bandwidths=BANDWIDTHS, clock=lambda: 5.0)


def line(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(name))[15:].strip()


def test_counts_of_this_launch_and_of_earlier_ones_add_up() -> None:
    """Catches a resumed run whose summary is about its last attempt only."""
    total = summary()
    for tiles in (1, 3, 2):
        total.add(record(tiles=tiles, lr_width=100 * tiles))
    total.done, total.done_before, total.bytes_out = 1, 2, 600
    values = total.as_dict()
    assert (values["images"], values["images_this_launch"], values["tiles"]) == (3, 1, 6)
    assert (values["bytes_in"], values["bytes_out"]) == (3000, 600)
    assert values["seconds"] == {"read": 3.0, "optimise": 9.0}
    assert line(total.format(), "images") == "3, 2 of them by earlier attempts"
    assert line(total.format(), "bytes") == "3 kB in, 600 B out"


def test_ratio_is_of_pixels_over_all_images_not_a_mean_of_ratios() -> None:
    total = summary(ratio=0.25)
    total.add(record(tiles=1, lr_width=10))
    total.add(record(tiles=0, lr_width=90, **WITHOUT_LOSS))
    assert total.reached_ratio == 0.1
    assert total.as_dict()["images_without_tile"] == 1


@pytest.mark.parametrize(("lr_pixels", "warned"), [(1000, False), (950, False), (900, True), (1200, True)])
def test_a_ratio_moved_by_more_than_a_tenth_is_reported(lr_pixels: int, warned: bool) -> None:
    total = summary(ratio=0.1)
    total.add(record(tiles=1, lr_width=lr_pixels // 10))
    assert (total.warning() is not None) == warned
    assert ("Smaller tiles (--tile-size) come nearer" in total.format()) == warned


def test_a_ratio_without_tiles_is_reported_with_a_larger_one() -> None:
    """Catches the advice of a setting that is in use: without a tile the cause is another."""
    total = summary(ratio=1e-4)
    total.add(record(tiles=0))
    assert total.warning() is None
    assert "--ratio 0.0001 is 0.001 of them: raise it, such as to 0.2" in total.fix_for_no_tile()


def test_a_ratio_exactly_a_tenth_off_is_not_reported() -> None:
    """Catches a bound that depends on the last bit of a float: 0.11 is not more than a tenth off 0.1."""
    total = summary(ratio=0.1)
    total.add(record(tiles=11, lr_width=1000))
    assert total.warning() is None


def test_losses_are_means_over_the_images_that_were_optimised() -> None:
    """Catches images without a loss (no tile, selection, quarantined) that pull the mean to 0."""
    total = summary()
    total.add(record())
    other = {"bandwidth_loss_start": [1.0, 0.6], "bandwidth_loss_end": [0.3, 0.3]}
    total.add(record(loss_start=0.8, loss_end=0.3, kept_start=True, **other))
    total.add(record(tiles=0, **WITHOUT_LOSS))
    total.add_quarantined("bad.png", "truncated", "ends early")
    assert total.loss() == pytest.approx((0.6, 0.2))
    by_bandwidth = total.loss_by_bandwidth()
    assert by_bandwidth[0.5] == pytest.approx((0.8, 0.2))
    assert by_bandwidth[2.0] == pytest.approx((0.4, 0.2))
    text = total.format()
    assert line(text, "held-out loss") == "0.6 -> 0.2 (x 0.33)"
    assert line(text, "  bandwidth 2") == "0.4 -> 0.2 (x 0.50)"
    assert "1 images kept their initial tiles" in text


def test_a_run_without_optimisation_has_no_loss_lines() -> None:
    total = summary()
    total.add(record(**WITHOUT_LOSS))
    assert "loss" not in total.format()
    assert "loss_start" not in total.as_dict()


def test_an_empty_run_can_be_summed_up() -> None:
    """Catches a division by zero when everything was quarantined or nothing was left to do."""
    total = summary()
    assert total.reached_ratio == 0.0
    assert line(total.format(), "quarantined") == "none"


def test_failures_are_listed_with_reasons_up_to_a_limit() -> None:
    """Catches a screen, or a memory, filled by a folder of ten thousand broken files."""
    total = summary()
    for number in range(KEPT_REASONS + 10):
        total.add_quarantined(f"bad{number}.png", "truncated", "ends early")
    text = total.format()
    assert line(text, "quarantined") == str(KEPT_REASONS + 10)
    assert "  bad0.png: ends early [truncated]" in text
    assert text.count("ends early") == SHOWN_REASONS
    assert f"and {KEPT_REASONS + 10 - SHOWN_REASONS} more" in text
    assert len(total.quarantined) == KEPT_REASONS
    assert total.as_dict()["images"] == 0


def test_memory_does_not_grow_with_images() -> None:
    """Catches rows that are kept: a million images would fill the driver."""
    few, many = summary(), summary()
    for total, count in ((few, 10), (many, 500)):
        for _ in range(count):
            total.add(record())
    states = [{name: value for name, value in vars(total).items() if name != "_clock"} for total in (few, many)]
    assert len(pickle.dumps(states[1])) - len(pickle.dumps(states[0])) < 50


def test_times_are_wall_time_and_shares_of_the_stages() -> None:
    times = iter([0.0, 90.0])
    total = Summary(0.1, 100, clock=lambda: next(times))
    total.add(record())
    total.add(record())
    text = total.format()
    assert line(text, "wall time") == "1 min 30 s"
    assert line(text, "worker time") == "reading 2 s (25 %), matching 6 s (75 %)"


def test_the_numbers_are_plain_json() -> None:
    total = summary()
    total.add(record())
    assert json.loads(json.dumps(total.as_dict(), allow_nan=False)) == total.as_dict()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (999_700, "1 MB"), (3_440_000, "3.44 MB"), (5e12, "5 TB")]
)
def test_sizes_carry_over(count: float, text: str) -> None:
    assert size(count) == text


def test_copies_are_named_up_to_a_few() -> None:
    total = summary()
    assert "duplicates" not in total.format()
    total.duplicates = [[f"{group}{i}\u202e.png" for i in range(5)] for group in "abcd"]
    text = line(total.format(), "duplicates")
    assert text.startswith("16 of the images are copies of others")
    assert text.endswith("c0\\u202e.png = c1\\u202e.png = c2\\u202e.png, ...")
