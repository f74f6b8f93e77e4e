"""Results of jobs as HTML for notebooks: numbers, a table, and some tiles. No script, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from idc_ray.errors import IdcError
from idc_ray.redact import printable
from idc_ray.report.page import template
from idc_ray.report.pictures import data_uri
from idc_ray.report.read_condensed import read_tiles, tile_rows
from idc_ray.store.filesystem import resolve
from idc_ray.store.manifest import index_table
from idc_ray.store.run_record import read_run
from idc_ray.units import duration, size

if TYPE_CHECKING:
    from idc_ray.results import CompareResult, CondenseResult, EvaluateResult, TrainResult, TuneResult

#: Images and trials that are shown, and tiles of each image.
IMAGES, TRIALS, TILES = 4, 10, 2

Cell = object


def condense_html(result: CondenseResult) -> str:
    """Numbers, and tiles of a few images if the output can be read."""
    numbers: dict[str, Cell] = {
        "images": result.num_images,
        "tiles": result.num_tiles,
        "pixels kept": f"{100 * result.ratio:.3g} %",
        "size": size(result.num_bytes),
        "time": duration(result.seconds),
        "quarantined": len(result.quarantined),
    }
    if result.losses:
        numbers["held-out loss"] = f"{result.losses['start']:.4g} → {result.losses['end']:.4g}"
    return _html(result.output, numbers, pictures=_pictures(result.output))


def train_html(result: TrainResult) -> str:
    """Steps, best PSNR and checkpoint."""
    best = "not validated" if result.best_psnr is None else f"{result.best_psnr:.2f} dB at step {result.best_step}"
    return _html(result.output, {"steps": result.num_steps, "best PSNR": best, "checkpoint": result.checkpoint})


def evaluate_html(result: EvaluateResult) -> str:
    """PSNR and SSIM by set."""
    rows = [[name, f"{psnr:.2f}", f"{result.ssim[name]:.4f}"] for name, psnr in result.psnr.items()]
    return _html(result.output, {}, ["set", "PSNR (dB)", "SSIM"], rows)


def compare_html(result: CompareResult) -> str:
    """PSNR of each arm by set."""
    sets = list(dict.fromkeys(name for scores in result.psnr.values() for name in scores))
    rows = [
        [arm, *("" if (psnr := scores.get(name)) is None else f"{psnr:.2f}" for name in sets)]
        for arm, scores in result.psnr.items()
    ]
    numbers = {"trainings": f"{result.num_finished} of {result.num_trainings}", "failed": len(result.failures)}
    return _html(result.output, numbers, ["arm", *(f"{name} (dB)" for name in sets)], rows)


def tune_html(result: TuneResult) -> str:
    """The best trials."""
    shown = result.trials[:TRIALS]
    names = list(dict.fromkeys(name for trial in shown for name in trial.settings))
    rows = [
        [trial.number, "" if trial.psnr is None else f"{trial.psnr:.3f}", trial.status,
         *(_short(trial.settings.get(name)) for name in names)]
        for trial in shown
    ]  # fmt: skip
    best = "" if result.best.psnr is None else f"{result.best.psnr:.3f} dB (trial {result.best.number})"
    numbers = {"trials": result.num_trials, "best PSNR": best, "settings": result.best_config}
    return _html(result.output, numbers, ["trial", "PSNR (dB)", "state", *names], rows)


def _short(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _html(
    output: str,
    numbers: Mapping[str, Cell],
    titles: Sequence[str] = (),
    rows: Sequence[Sequence[Cell]] = (),
    pictures: Sequence[tuple[str, list[list[str]]]] = (),
) -> str:
    return template("notebook.html").render(
        output=printable(output), numbers=numbers, titles=titles, rows=rows, pictures=pictures
    )


def _pictures(output: str) -> list[tuple[str, list[list[str]]]]:
    """Names and tiles of some images; empty if the output cannot be read."""
    try:
        storage = resolve(output)
        run = read_run(storage)
        if run is None:
            return []
        table = index_table(storage, ["image_id", "tiles", "source"]).to_pylist()
        some = [each for each in table if each["tiles"]][:IMAGES]
        rows = read_tiles(storage, run, [each["image_id"] for each in some])
    except (IdcError, OSError, pa.ArrowException):
        return []
    found = []
    for each in some:
        tiles = tile_rows(rows[each["image_id"]])[:TILES]
        pairs = [[data_uri(row[name]["bytes"]) for name in run.stored] for row in tiles]
        found.append((printable(each["source"]), pairs))
    return found
