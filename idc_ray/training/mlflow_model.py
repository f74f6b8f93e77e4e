"""Saving a trained network as an MLflow model with a signature: ``mlflow.pyfunc.load_model("runs:/RUN/model")``."""

from __future__ import annotations

import warnings
from pathlib import Path

import idc_ray


def save_mlflow_model(checkpoint: bytes, folder: Path) -> None:
    """Write the network of an idc_ray checkpoint to ``folder / "model"``; see :mod:`idc_ray.training.mlflow_pyfunc`.

    Signature: float32 (-1, 3, -1, -1), RGB in [0, 1], to the same with sides multiplied by the scale.
    """
    import mlflow.pyfunc  # takes seconds, needed with tracking only
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    images = Schema([TensorSpec(np.dtype(np.float32), (-1, 3, -1, -1))])
    weights = folder / "checkpoint.safetensors"
    weights.write_bytes(checkpoint)
    with warnings.catch_warnings():
        # MLflow warns of a missing input example, although it has the signature.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\.")
        mlflow.pyfunc.save_model(
            folder / "model",
            python_model=str(Path(__file__).with_name("mlflow_pyfunc.py")),
            artifacts={"checkpoint": str(weights)},
            signature=ModelSignature(images, images),
            # Without this MLflow loads the model in another process to infer the requirements.
            pip_requirements=[f"idc_ray=={idc_ray.__version__}", f"torch=={torch.__version__}"],
        )
