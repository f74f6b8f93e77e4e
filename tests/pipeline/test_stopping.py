from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from idc_ray.errors import BadRequest, IdcError
from idc_ray.images import ImageListing
from idc_ray.pipeline import condense
from idc_ray.pipeline.job import Job
from idc_ray.pipeline.stopping import as_row, raise_from


@pytest.mark.parametrize("error", [IdcError("the disk is full; free some"), BadRequest("no 'such' folder:\nänder es")])
def test_an_error_survives_its_way_as_json(error: IdcError) -> None:
    """Catches a wrong setting that ends with exit code 1, and a message that Ray's wrapping replaces."""
    row = json.loads(json.dumps(as_row(error)))
    with pytest.raises(type(error)) as caught:
        raise_from(row)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert caught.value.exit_code == error.exit_code


@pytest.mark.parametrize("row", [{"outcome": "done"}, {"outcome": "quarantined", "reason": "x"}, {"difficulty": 0.1}])
def test_the_row_of_an_image_raises_nothing(row: dict[str, object]) -> None:
    """Catches a survey, whose rows have no outcome, that fails on its first one."""
    raise_from(row)


def test_an_output_that_became_read_only_is_named_by_the_error(
    job_and_found: tuple[Job, ImageListing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a clean-up that fails as well and replaces the error by its own traceback."""

    def refuse(error: Exception) -> None:
        raise error

    @contextlib.contextmanager
    def no_cluster(join: object) -> Iterator[bool]:
        yield True

    monkeypatch.setattr(condense, "ray_cluster", no_cluster)
    monkeypatch.setattr(condense, "_track", lambda launch: None)
    monkeypatch.setattr(condense, "_condense_all", lambda launch: refuse(IdcError("the output cannot be used")))
    monkeypatch.setattr(condense, "end_launch", lambda *_: refuse(PermissionError("read-only")))
    with pytest.raises(IdcError, match="the output cannot be used"):
        condense._run_on_ray(SimpleNamespace(job=job_and_found[0]))  # type: ignore[arg-type]
