"""Reports: self-contained HTML files that show the outputs of jobs. No Ray, no MLflow, no network.

`write_report` reads finished and unfinished outputs of condense, train, compare and tune.
"""

from __future__ import annotations

from idc_ray.report.section import Options
from idc_ray.report.write import REPORT, make_report, write_own_report, write_report

__all__ = ["REPORT", "Options", "make_report", "write_own_report", "write_report"]
