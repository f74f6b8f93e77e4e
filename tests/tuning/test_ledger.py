from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from idc_ray.store.filesystem import resolve
from idc_ray.tuning.ledger import Ledger
from idc_ray.tuning.records import Records, TrialRecord
from idc_ray.tuning.trial import Report
from tests.tuning.conftest import record

SEED = record(0, 30.0).seeds[0]


def trial(number: int = 0) -> Any:
    config = {"number": number, "draw": record(number).draw}
    return SimpleNamespace(config=config, get_pickled_error=lambda: RuntimeError("The actor died\nunexpectedly"))


def told(ledger: Ledger, **values: Any) -> None:
    report = Report(step=4, psnr=30.0, ratio=0.1, cost=1.0, seeds=(SEED,))
    ledger.on_trial_result(1, [], trial(), {**asdict(report), "seeds": [asdict(SEED)], **values})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ended: list[TrialRecord] = []
    made = Ledger(Records(resolve(str(tmp_path))), {}, ended.append)
    made.ended = ended  # type: ignore[attr-defined]
    made.on_trial_start(1, [], trial())
    return made


def on_disk(ledger: Ledger) -> TrialRecord:
    (found,) = ledger.records.read_all()
    return found


@pytest.mark.parametrize(
    ("report", "status"),
    [({"finished": True}, "finished"), ({"done": True}, "stopped"), ({"failed": "no tile"}, "failed"), ({}, "running")],
)
def test_a_report_is_kept_as_what_it_says(ledger: Ledger, report: dict[str, Any], status: str) -> None:
    """Catches a finished trial that is lost because nobody wrote it down at once, and a rung that counts as an end."""
    assert on_disk(ledger).status == "running"
    told(ledger, **report)
    assert on_disk(ledger).status == status
    assert [each.status for each in ledger.ended] == ([status] if status != "running" else [])  # type: ignore[attr-defined]
    if status == "failed":
        assert on_disk(ledger).reason == "no tile"
    elif status != "running":
        assert (on_disk(ledger).psnr, on_disk(ledger).seeds) == (30.0, [SEED])


def test_a_lost_process_is_counted_and_at_last_named(ledger: Ledger) -> None:
    """Catches a trial that takes its process with it, again and again, for no reason that one can read."""
    told(ledger)
    ledger.on_trial_recover(1, [], trial())
    assert (on_disk(ledger).status, on_disk(ledger).deaths) == ("running", 1)
    ledger.on_trial_start(1, [], trial())
    assert ledger.known[0].reports == []  # it begins anew
    ledger.on_trial_error(1, [], trial())
    assert (on_disk(ledger).status, on_disk(ledger).deaths) == ("failed", 2)
    assert on_disk(ledger).reason == "its process died 2 times: The actor died"


def test_a_failure_that_was_told_is_not_told_again(ledger: Ledger) -> None:
    told(ledger, finished=True)
    ledger.on_trial_error(1, [], trial())
    assert on_disk(ledger).status == "finished"


def test_an_error_of_the_disk_is_kept_for_the_driver(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a full disk that ends as a page of Tune's."""

    def full(self: Records, record: TrialRecord) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Records, "write", full)
    with pytest.raises(OSError):
        told(ledger, finished=True)
    assert isinstance(ledger.error, OSError)
