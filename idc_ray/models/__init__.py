"""Networks: architectures, checkpoints, and the frozen teacher. torch only."""

from __future__ import annotations

from idc_ray.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from idc_ray.models.edsr import EDSR
from idc_ray.models.load import bundled_teacher_bytes, load_teacher, load_upscaler, teacher_sha256
from idc_ray.models.registry import ModelSpec, create_model, list_models, model_spec
from idc_ray.models.teacher import Teacher
from idc_ray.models.upscaler import Upscaler

__all__ = [
    "EDSR",
    "Checkpoint",
    "ModelSpec",
    "Teacher",
    "Upscaler",
    "bundled_teacher_bytes",
    "create_model",
    "list_models",
    "load_checkpoint",
    "load_teacher",
    "load_upscaler",
    "model_spec",
    "save_checkpoint",
    "teacher_sha256",
]
