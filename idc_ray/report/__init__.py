"""Reports: one HTML file that shows what an output holds. No Ray, no MLflow, no network.

`write_report` reads outputs of condense, train, compare and tune, whether they are finished or not.
"""

from __future__ import annotations

from idc_ray.report.section import Options
from idc_ray.report.write import REPORT, make_report, write_own_report, write_report

__all__ = ["REPORT", "Options", "make_report", "write_own_report", "write_report"]
