from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from idc_ray.config.tune import TuneConfig
from idc_ray.errors import BadRequest
from idc_ray.mlflow_runs import RunFamily
from idc_ray.store.filesystem import resolve
from idc_ray.tracking import Tracker


class Server:
    """Replaces MLflow's tracker: records the runs, their parents and their ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.away = False
        self.numbers = itertools.count()
        monkeypatch.setattr(Tracker, "start", self.start)
        monkeypatch.setattr(Tracker, "finish", lambda tracker, status: self.runs[tracker.run_id].update(end=status))

    def start(
        self, settings: Any, output: str, digest: str, run_id: str | None = None, name: str = "", parent: Any = None
    ) -> Tracker:
        if self.away:
            raise BadRequest("the server is away")
        found = run_id if run_id is not None and run_id in self.runs else f"run{next(self.numbers)}"
        self.runs.setdefault(found, {"name": name, "parent": parent})
        return Tracker(None, found)


def family(storage: Path) -> RunFamily:
    config = TuneConfig(space="x")
    return RunFamily(config.mlflow, config, str(storage), resolve(str(storage)), "digest")


def test_a_continued_job_neither_repeats_nor_forgets_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a second parent after a restart, a part that is logged twice, and one that was missed and stays so."""
    server = Server(monkeypatch)
    first = family(tmp_path)
    first.child("a", lambda run: None)
    server.away = True
    first.child("b", lambda run: None)
    server.away = False
    first.finish("KILLED")
    again = family(tmp_path)
    again.child("a", lambda run: None)
    again.child("b", lambda run: None, "FAILED")
    again.finish("FINISHED")
    assert [run["name"] for run in server.runs.values()] == ["", "a", "b"]
    assert [run["end"] for run in server.runs.values()] == ["FINISHED", "FINISHED", "FAILED"]
    assert [run["parent"] for run in server.runs.values()] == [None, "run0", "run0"]


def test_an_unfinished_child_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a second run for a part whose logging was interrupted, and a run that is never closed."""
    server = Server(monkeypatch)

    def cut_off(run: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        family(tmp_path).child("a", cut_off)
    again = family(tmp_path)
    again.child("a", lambda run: None)
    assert [run["name"] for run in server.runs.values()] == ["", "a"]
    assert server.runs["run1"]["end"] == "FINISHED"


def test_a_parent_that_is_gone_takes_its_children_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches children of a deleted run that are never logged below the new one."""
    server = Server(monkeypatch)
    family(tmp_path).child("a", lambda run: None)
    server.runs.clear()
    family(tmp_path).child("a", lambda run: None)
    assert [run["parent"] for run in server.runs.values()] == [None, "run2"]
