"""The README's plot, from the recorded trainings: python benchmarks/results_plot.py --output docs/images/results.svg

PSNR on Set5 of a small student against the share of the LR pixels that it was trained on, at equal steps: means
and ranges over the seeds in docs/results.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]

#: Methods with three ratios and teacher labels: name in the legend, colour (of Okabe and Ito), marker.
METHODS = {
    "idc": ("idc", "#D55E00", "o"),
    "hardest": ("hardest crops", "#0072B2", "s"),
    "random": ("random crops", "#666666", "^"),
}


def read(folder: Path, benchmark: str) -> dict[tuple[str, float, str], list[float]]:
    """PSNR by (method, ratio, labels)."""
    found: dict[tuple[str, float, str], list[float]] = {}
    for file in sorted(folder.glob("*.json")):
        line = json.loads(file.read_text())
        key = (line["method"], line["ratio"], line["labels"])
        found.setdefault(key, []).append(line["sets"][benchmark]["psnr"])
    return found


def draw(found: dict[tuple[str, float, str], list[float]], output: Path) -> None:
    plt.rcParams |= {"font.size": 11, "svg.hashsalt": "idc_ray", "svg.fonttype": "none", "font.family": "sans-serif"}
    figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
    for method, (label, colour, marker) in METHODS.items():
        points = sorted((ratio, psnrs) for (name, ratio, labels), psnrs in found.items()
                        if name == method and labels == "teacher")  # fmt: skip
        means = [statistics.fmean(psnrs) for _, psnrs in points]
        spread = [[m - min(p) for m, (_, p) in zip(means, points, strict=True)],
                  [max(p) - m for m, (_, p) in zip(means, points, strict=True)]]  # fmt: skip
        axes.errorbar([100 * r for r, _ in points], means, spread, label=label, color=colour,
                      marker=marker, capsize=3, linewidth=2)  # fmt: skip
    for labels, style in (("teacher", "--"), ("real", ":")):
        (psnrs,) = [p for (name, _, given), p in found.items() if name == "whole" and given == labels]
        axes.axhline(statistics.fmean(psnrs), color="black", linestyle=style, linewidth=1.2,
                     label=f"all images, {labels} labels")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks([0.5, 2, 10], ["0.5 %", "2 %", "10 %"])
    axes.minorticks_off()
    axes.set_xlabel("share of the low-resolution pixels that is kept")
    axes.set_ylabel("PSNR on Set5, Y (dB)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, loc="lower right", ncols=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(output, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="folder of recorded trainings")
    parser.add_argument("--benchmark", default="Set5", help="set whose PSNR is shown")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.svg")
    asked = parser.parse_args()
    draw(read(asked.results, asked.benchmark), asked.output)


if __name__ == "__main__":
    main()
