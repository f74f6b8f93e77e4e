from __future__ import annotations

import pickle

from idc_ray.images import ImageListing
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.reading import ReadImages
from idc_ray.store.run_record import read_run
from tests.pipeline.conftest import DIGEST


def test_a_job_reaches_other_processes_whole_and_small(job_and_found: tuple[Job, ImageListing]) -> None:
    """Catches a file system or a lock that cannot be pickled, and the manifest of a million images sent to each."""
    job, listing = job_and_found
    data = pickle.dumps(ReadImages(job))
    assert len(data) < 20_000
    copy = pickle.loads(data)
    assert copy.job.config == job.config
    assert read_run(copy.job.store) == read_run(job.store)
    assert copy.job.digest == DIGEST
    assert copy(listing.manifest)["code"].to_pylist() == [""] * 3
