"""Plots of a sweep, by Optuna."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import optuna
from matplotlib.axes import Axes
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as optuna_plots

__all__ = ["draw_plots", "importances"]

TITLES = {"psnr": "PSNR on Y (dB)", "ratio": "ratio reached", "cost": "condensing (s)"}

#: Minimum number of finished trials for importances; those of fewer are noise.
MIN_TRIALS = 4


def draw_plots(study: optuna.Study, objectives: Sequence[str]) -> dict[str, bytes]:
    """PNGs by name; without those that there are too few finished trials for.

    Args:
        study: with user attribute ``psnr`` of each trial.
        objectives: names of the study's objectives, in its order.
    """
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return {}
    several = len(objectives) > 1
    psnr: dict[str, Any] = {"target": _psnr if several else None, "target_name": TITLES["psnr"]}
    plots: dict[str, Callable[[], Axes]] = {
        "history.png": lambda: optuna_plots.plot_optimization_history(study, **psnr),
        "parallel_coordinates.png": lambda: optuna_plots.plot_parallel_coordinate(study, target_name=TITLES["psnr"]),
    }
    if importances(study):
        plots["importance.png"] = lambda: optuna_plots.plot_param_importances(
            study, optuna.importance.FanovaImportanceEvaluator(seed=0), target=_psnr, target_name=TITLES["psnr"]
        )
    if several:
        names = [TITLES[name] for name in objectives]
        plots["pareto_front.png"] = lambda: optuna_plots.plot_pareto_front(study, target_names=names)
    return {name: _png(plot) for name, plot in plots.items()}


def importances(study: optuna.Study) -> dict[str, float]:
    """Share of each parameter in the differences of PSNR by fANOVA, largest first; empty for few trials.

    Conditional parameters are left out: they have no value in every trial. Optuna's default, PED-ANOVA, compares with
    the best tenth only, which of a few dozen trials is too little: of a made-up sweep of 40 in which one parameter
    mattered it put two others first, fANOVA did not.
    """
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(finished) < MIN_TRIALS or len({_psnr(trial) for trial in finished}) < 2:
        return {}
    try:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return optuna.importance.get_param_importances(study, evaluator=evaluator, target=_psnr)
    except (RuntimeError, ValueError):  # such as: no parameter takes part in all trials
        return {}


def _psnr(trial: FrozenTrial) -> float:
    return float(trial.user_attrs["psnr"])


def _png(plot: Callable[[], Axes]) -> bytes:
    with warnings.catch_warnings(), plt.rc_context({"figure.figsize": (10, 5)}):  # Optuna sets a style for the process
        warnings.simplefilter("ignore")  # of its plots being experimental
        figure: Any = plot().figure
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        plt.close(figure)
    return buffer.getvalue()
