"""Images: found, read, checked, made low-resolution, cut into tiles. No Ray, no torch.

The public API of the package; what is not listed here may change.
"""

from __future__ import annotations

from idc_ray.images.find import IMAGE_ENDINGS, ImageListing, find_images, output_inside
from idc_ray.images.instance import Instance, load_instance, read_encoded
from idc_ray.images.manifest import MANIFEST_SCHEMA, ImageRef, image_id
from idc_ray.images.read import FORMATS, decode_image, decode_rgb, rgb_profile
from idc_ray.images.resize import downscale, upscale
from idc_ray.images.tiles import crop_starts, decode_png, encode_png, grid_count

__all__ = [
    "FORMATS",
    "IMAGE_ENDINGS",
    "MANIFEST_SCHEMA",
    "ImageListing",
    "ImageRef",
    "Instance",
    "crop_starts",
    "decode_image",
    "decode_png",
    "decode_rgb",
    "downscale",
    "encode_png",
    "find_images",
    "grid_count",
    "image_id",
    "load_instance",
    "output_inside",
    "read_encoded",
    "rgb_profile",
    "upscale",
]
