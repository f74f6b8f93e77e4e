from __future__ import annotations

from typing import Any

from idc_ray.report.sample import sample_images


def records(count: int) -> list[dict[str, Any]]:
    return [
        {
            "image_id": f"{i:04d}",
            "source": f"{i}.png",
            "tiles": i % 5,
            "loss_start": 1.0,
            "loss_end": (i * 7 % 100) / 100,
        }
        for i in range(count)
    ]


def test_the_worst_are_among_a_few_of_many() -> None:
    chosen = sample_images(records(1000), 30)
    assert len(chosen) == 30
    tiled = [each for each in records(1000) if each["tiles"]]
    assert max(tiled, key=lambda each: each["loss_end"])["image_id"] in chosen
    assert {"large loss", "little gained", "sample"} >= set(chosen.values())


def test_all_of_a_few_are_chosen_and_none_without_a_tile() -> None:
    chosen = sample_images(records(20), 60)
    assert set(chosen) == {each["image_id"] for each in records(20) if each["tiles"]}


def test_what_was_asked_for_comes_first_even_of_none() -> None:
    assert sample_images(records(100), 0, ["7.png", "9*.png"]) == dict.fromkeys(
        [each["image_id"] for each in records(100) if each["tiles"] and each["source"][0] in "79" and each["source"] in
         {"7.png", "9.png", *(f"9{i}.png" for i in range(10))}], "requested"
    )  # fmt: skip


def test_images_that_nothing_was_optimised_for_are_shown_too() -> None:
    some = [each | {"loss_start": None, "loss_end": None} for each in records(50)]
    assert len(sample_images(some, 10)) == 10
