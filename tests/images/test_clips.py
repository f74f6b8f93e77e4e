from __future__ import annotations

from idc_ray.images.clips import clip_of


def test_a_folder_an_archive_or_a_part_of_the_name_is_a_clip() -> None:
    """Catches frames of one archive that are taken apart, and single images that are taken for frames."""
    assert clip_of("a/b/0001.png", "folder") == "a/b" != clip_of("a/0001.png", "folder")
    assert clip_of("a/clip.tar#0001.png", "folder") == "a/clip.tar" == clip_of("a/clip.tar#0002.png", "folder")
    assert clip_of("x/walk_0001.png", r"(\w+)_\d+") == "walk"
    assert clip_of("x/portrait.png", r"(\w+)_\d+") == "x/portrait.png"
