"""Networks: architectures, checkpoints and the frozen teacher. No Ray, no MLflow."""

from __future__ import annotations

from idc_ray.models.checkpoint import Checkpoint, checkpoint_bytes, load_checkpoint, read_metadata
from idc_ray.models.edsr import EDSR
from idc_ray.models.load import bundled_teacher_bytes, load_teacher, load_upscaler, teacher_sha256
from idc_ray.models.mambairv2 import MambaIRv2
from idc_ray.models.registry import ModelSpec, create_model, list_models, model_spec
from idc_ray.models.swinir import SwinIR
from idc_ray.models.teacher import Teacher
from idc_ray.models.upscaler import Upscaler

__all__ = [
    "EDSR",
    "Checkpoint",
    "MambaIRv2",
    "ModelSpec",
    "SwinIR",
    "Teacher",
    "Upscaler",
    "bundled_teacher_bytes",
    "checkpoint_bytes",
    "create_model",
    "list_models",
    "load_checkpoint",
    "load_teacher",
    "load_upscaler",
    "model_spec",
    "read_metadata",
    "teacher_sha256",
]
