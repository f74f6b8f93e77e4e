from __future__ import annotations

import pytest

from idc_ray.errors import BadRequest
from idc_ray.images.manifest import Entry
from idc_ray.images.pairs import pair


def entries(*names: str) -> list[Entry]:
    return [Entry(name, "/" + name) for name in names]


def pairs(hr: list[str], lr: list[str], scale: int = 2) -> dict[str, str | None]:
    return {entry.source: entry.lr_path for entry in pair(entries(*hr), entries(*lr), scale)}


def test_names_match_by_relative_path_without_ending() -> None:
    """Catches a match by file name alone, which mixes folders up."""
    assert pairs(["a/1.png", "b/1.png"], ["b/1.jpg", "a/1.png", "c/1.png"]) == {
        "a/1.png": "/a/1.png",
        "b/1.png": "/b/1.jpg",
    }


def test_div2ks_suffix_matches() -> None:
    assert pairs(["0001.png", "0002.png"], ["0001x2.png", "0002x2.png"]) == {
        "0001.png": "/0001x2.png",
        "0002.png": "/0002x2.png",
    }
    assert pairs(["a.b.png"], ["a.bx4.png"], scale=4) == {"a.b.png": "/a.bx4.png"}


def test_an_equal_name_wins_over_a_suffix() -> None:
    """Catches `a` taking the partner of `ax2`."""
    assert pairs(["a.png", "ax2.png"], ["a.png", "ax2.png"]) == {"a.png": "/a.png", "ax2.png": "/ax2.png"}


def test_missing_partners_are_named_and_counted() -> None:
    with pytest.raises(BadRequest, match=r"7 of 8 .*'1\.png', '2\.png', '3\.png', '4\.png', '5\.png' and 2 more"):
        pairs([f"{i}.png" for i in range(8)], ["0.png"])


def test_lr_of_another_scale_is_hinted_at() -> None:
    """Catches x4 files mistaken for x2, and a message that leaves one guessing."""
    with pytest.raises(BadRequest, match="end in x4: is the scale right"):
        pairs(["0001.png"], ["0001x4.png"])


@pytest.mark.parametrize(
    ("hr", "lr"),
    [(["a.png", "a.jpg"], ["a.png"]), (["a.png", "ax2.png"], ["ax2.png"]), (["a.png"], ["a.png", "a.jpg"])],
)
def test_ambiguous_partners_are_refused(hr: list[str], lr: list[str]) -> None:
    """Catches an LR image trained on with the wrong HR image."""
    with pytest.raises(BadRequest, match="LR files"):
        pairs(hr, lr)
