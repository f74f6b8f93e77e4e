"""A trained network as an MLflow model with a signature: ``mlflow.pyfunc.load_model("runs:/RUN/model")``."""

from __future__ import annotations

import warnings
from pathlib import Path

import idc_ray

__all__ = ["save_mlflow_model"]


def save_mlflow_model(checkpoint: bytes, folder: Path) -> None:
    """Write the network of an idc_ray checkpoint to ``folder / "model"``; see :mod:`idc_ray.training.mlflow_pyfunc`.

    Its signature: float32 (-1, 3, -1, -1), RGB in [0, 1], to the same with sides times the scale.
    """
    import mlflow.pyfunc  # seconds; only where tracking is on
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    images = Schema([TensorSpec(np.dtype(np.float32), (-1, 3, -1, -1))])
    weights = folder / "checkpoint.safetensors"
    weights.write_bytes(checkpoint)
    with warnings.catch_warnings():
        # MLflow asks for an example to find the signature by, though it is given one.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"mlflow\.")
        mlflow.pyfunc.save_model(
            folder / "model",
            python_model=str(Path(__file__).with_name("mlflow_pyfunc.py")),
            artifacts={"checkpoint": str(weights)},
            signature=ModelSignature(images, images),
            # Named here: MLflow would load the model in another process to find out.
            pip_requirements=[f"idc_ray=={idc_ray.__version__}", f"torch=={torch.__version__}"],
        )
