"""Code that MLflow runs to load a logged network ("models from code"), without pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from numpy.typing import NDArray

from idc_ray.models import load_checkpoint


class Upscale(PythonModel):
    """An idc_ray checkpoint on the CPU, float32 (b, 3, h, w) in [0, 1] to (b, 3, scale h, scale w)."""

    def load_context(self, context: Any) -> None:
        """Read the checkpoint."""
        self.network = load_checkpoint(Path(context.artifacts["checkpoint"]).read_bytes()).build().eval()

    @torch.no_grad()
    def predict(  # MLflow warns of other type hints for arrays
        self,
        context: Any,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> NDArray[np.float32]:
        """Upscale images."""
        return self.network(torch.from_numpy(np.ascontiguousarray(model_input))).clamp(0, 1).numpy()


set_model(Upscale())
