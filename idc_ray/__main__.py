"""``python -m idc_ray``: the same as the ``idc-ray`` console script."""

from idc_ray.commands import run

run()
