"""Report section of a training."""

from __future__ import annotations

from typing import Any

from idc_ray.errors import BadRequest
from idc_ray.report.pictures import data_uri
from idc_ray.report.section import Card, Chart, Section, rounded
from idc_ray.report.state import job_state
from idc_ray.store.filesystem import StorageFolder

RECORD, CURVES = "train.json", "curves.json"
FIX = "name the --output of a training"


def training_section(storage: StorageFolder) -> Section:
    """Section of a training, finished or not.

    Raises:
        BadRequest: there is no training.
        IdcError: its record cannot be read.
    """
    record = storage.read_json(RECORD, FIX)
    if record is None:
        raise BadRequest(f"no training in {storage.uri}: {storage.shown(RECORD)} is not there; {FIX}")
    config: dict[str, Any] = record["config"]
    curves = storage.read_json(CURVES, "delete that file: it is written again") or {}
    points: list[list[Any]] = curves.get("points", [])
    validations: list[tuple[int, float | None]] = [(step, psnr) for step, psnr in curves.get("validations", [])]
    step = max([0, *(int(point[0]) for point in points), *(each for each, _ in validations)])
    if record["tracked"]:
        step = config["iterations"]
    files = [(name, size) for name in ("best.safetensors", "last.safetensors") if (size := storage.size(name))]
    return Section(
        "training",
        storage.uri,
        job_state(storage, record["tracked"]),
        f"; {step:,} of {config['iterations']:,} steps",
        config,
        {
            "Data": ", ".join(record["data"]),
            "Created": record["created"],
            "Digest of the settings": record["digest"],
            **{name: f"{size / 1e6:.2f} MB" for name, size in files},
        },
        _cards(config, step, points, validations),
        _charts(config, points, validations),
        {"samples": _samples(storage, curves.get("samples", []), dict(validations))},
        {"points": points, "validations": validations, "data": record["data"]},
    )


def _cards(
    config: dict[str, Any], step: int, points: list[list[Any]], validations: list[tuple[int, float | None]]
) -> list[Card]:
    cards = [
        Card("Steps", f"{step:,}", f"of {config['iterations']:,}"),
        Card("Model", config["model"], f"x{config['scale']}"),
    ]
    known = [(psnr, at) for at, psnr in validations if psnr is not None]
    if known:
        best, at = max(known)
        cards.append(Card("Best PSNR", f"{best:.2f} dB", f"at step {at:,}"))
        cards.append(Card("Last PSNR", f"{known[-1][0]:.2f} dB", f"at step {known[-1][1]:,}"))
    if points:
        cards.append(Card("Loss", f"{points[-1][1]:.4g}", f"{points[0][1]:.4g} at step {points[0][0]:,}"))
        rates = sorted(point[2] for point in points)
        cards.append(Card("Steps per second", f"{rates[len(rates) // 2]:.3g}", "median"))
    cards.append(
        Card("Batch", f"{config['batch_size']}", f"patches of {config['patch_size']} x {config['patch_size']} px")
    )
    return cards


def _charts(
    config: dict[str, Any], points: list[list[Any]], validations: list[tuple[int, float | None]]
) -> list[Chart]:
    psnrs = [{"step": step, "value": rounded(psnr)} for step, psnr in validations if psnr is not None]
    charts = [
        _curve("PSNR on the validation images", "PSNR on Y (dB)", psnrs, zero=False),
        *(
            _curve(title, unit, [{"step": each[0], "value": rounded(each[column], 4)} for each in points], zero)
            for title, unit, column, zero in (
                (f"Loss ({config['loss']})", "loss", 1, False),
                ("Rate", "steps per second", 2, True),
                ("Learning rate", "learning rate", 3, True),
            )
        ),
    ]
    return charts


def _curve(title: str, unit: str, rows: list[dict[str, Any]], zero: bool) -> Chart:
    values = [row["value"] for row in rows] or [0.0]
    ends = f"from {values[0]:.4g} to {values[-1]:.4g}, between {min(values):.4g} and {max(values):.4g}"
    alt = f"Line of {title} over the steps: {ends}."
    return Chart("curve", title, alt, rows, {"encoding.y.title": unit, "encoding.y.scale.zero": zero})


def _samples(storage: StorageFolder, steps: list[int], psnrs: dict[int, float | None]) -> list[dict[str, Any]]:
    found = [(step, storage.read(sample_name(step))) for step in steps]
    return [{"step": step, "psnr": psnrs.get(step), "picture": data_uri(data)} for step, data in found if data]


def sample_name(step: int) -> str:
    """Name of the file with the sample crops of a validation."""
    return f"samples/{step:08d}.png"
