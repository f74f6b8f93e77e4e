from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from idc_ray.store.records import INDEX_SCHEMA, records_from_table, table_from_records


def test_record_survives_the_index(make: SimpleNamespace) -> None:
    full = make.record("a.png")
    bare = make.record(
        "ü.png", 0, kept_start=None, loss_start=None, loss_end=None, bandwidth_loss_start=[], bandwidth_loss_end=[],
        seconds={},
    )  # fmt: skip
    table = table_from_records([full, bare])
    assert table.schema == INDEX_SCHEMA
    assert sorted(records_from_table(table), key=lambda r: r.source) == [full, bare]


def test_index_does_not_depend_on_the_order_of_images_or_stages(make: SimpleNamespace) -> None:
    a, b = make.record("a.png", seconds={"x": 1.0, "y": 2.0}), make.record("b.png")
    turned = make.record("a.png", seconds={"y": 2.0, "x": 1.0})
    assert table_from_records([a, b]).equals(table_from_records([b, turned]))


@pytest.mark.parametrize("change", [{"loss_end": math.nan}, {"bandwidth_loss_start": [math.inf]}])
def test_a_loss_that_is_no_number_is_refused_before_it_is_stored(
    make: SimpleNamespace, change: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match=r"a loss of a\.png is (nan|inf)"):
        make.record("a.png", **change)


@pytest.mark.parametrize("change", [{"image_id": "ABC"}, {"source_sha256": "ab"}])
def test_malformed_ids_are_refused(make: SimpleNamespace, change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make.record("a.png", **change)
