from __future__ import annotations

import json

import pytest

from idc_ray.errors import BadRequest, IdcError
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
