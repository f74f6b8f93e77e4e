"""Degradation of HR images to LR images, by typed lists of random steps. No Ray, no torch."""

from __future__ import annotations

from idc_ray.degradation.degrade import BICUBIC, Degrade, apply, draw, reading

__all__ = ["BICUBIC", "Degrade", "apply", "draw", "reading"]
