"""The public Python API; its names are those of ``idc_ray.__all__``."""
