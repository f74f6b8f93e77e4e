"""The tuning job. Needs the extra ``experiments``."""

from idc_ray.extras import require_extra

require_extra("experiments", ("optuna", "sklearn"), "idc-ray tune")
