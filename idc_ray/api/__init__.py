"""The public Python API, exported by ``idc_ray``."""
