"""The comparison job. Needs the extra ``experiments``."""

from idc_ray.extras import require_extra

require_extra("experiments", ("scipy",), "idc-ray compare")
