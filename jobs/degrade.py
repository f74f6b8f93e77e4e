"""``idc-ray degrade`` from a clone, installed or not; the reason for the path is in jobs/README.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from idc_ray.commands import run

if __name__ == "__main__":
    run("degrade")
