"""Condensed sets in the formats of trainers and data libraries."""

from idc_ray.exporting.formats import META, describe_export, export_set

__all__ = ["META", "describe_export", "export_set"]
