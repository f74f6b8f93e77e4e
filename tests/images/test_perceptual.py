from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.data import astronaut, chelsea, coffee, rocket

from idc_ray.images.perceptual import near_duplicates, perceptual_hash

PHOTO: NDArray[np.uint8] = astronaut()


def differing(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    return (perceptual_hash(one) ^ perceptual_hash(other)).bit_count()


def test_changes_that_keep_the_picture_change_few_bits_and_other_pictures_many() -> None:
    """Catches a hash of the pixels, and one that does not tell pictures apart."""
    photo = Image.fromarray(PHOTO)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=20)
    changed = [photo.resize((200, 200)), Image.open(buffer).convert("RGB"), photo.point(lambda x: min(255, x + 20))]
    for image in changed:
        assert differing(PHOTO, np.asarray(image)) <= 4
    others = [chelsea(), coffee(), rocket(), PHOTO[:, ::-1], PHOTO[::-1]]
    for index, image in enumerate(others):
        for other in [PHOTO, *others[:index]]:
            assert differing(np.ascontiguousarray(image), np.ascontiguousarray(other)) >= 16


def test_near_duplicates_refer_to_the_nearest_image_that_is_kept() -> None:
    """Catches chains: 0b0111 is two bits from 0b0001, which is left out, but three from 0, which is kept."""
    assert near_duplicates([0, 0b1, 0b0111, 0b1111, 0, 2**63], 2) == [None, 0, None, 2, 0, 0]
    assert near_duplicates([5, 5, 4], 0) == [None, 0, None]
    assert near_duplicates([], 6) == []
