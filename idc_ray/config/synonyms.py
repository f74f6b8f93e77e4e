"""Common other names of settings, for hints in error messages."""

from __future__ import annotations

import logging
from collections.abc import Collection

log = logging.getLogger(__name__)

#: Former names of settings and what they are called now; accepted with a warning until the next minor version.
RENAMED = {"guide": "feature_network", "slots": "teacher_batch_size"}

#: Sections whose name stands for one of their settings.
SHORT = {"store": "store.tiles"}

#: A setting, in the order of preference where several are given, and other names of it. A command takes the first
#: setting that it has.
SYNONYMS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("output",), "o out outdir out_dir output_dir output_folder dest destination save_dir save_path"),
    (("input", "data", "benchmarks", "run"), "i in indir in_dir input input_dir input_folder src source_dir data "
     "dataset datasets data_dir data_root dataroot photos path"),
    (("scale",), "s x factor upscale upscale_factor upscaling scale_factor sr_scale sf"),
    (("ratio", "ratios"), "r percent percentage fraction keep share compression"),
    (("iterations",), "iter iters iteration steps step num_steps max_steps total_steps n_iter num_iter num_iterations "
     "max_iter total_iter"),
    (("iterations",), "epoch epochs num_epochs max_epochs n_epochs"),
    (("optimizer.learning_rate",), "lr rate learning_rate step_size"),
    (("optimizer.weight_decay",), "wd decay l2"),
    (("optimizer.clip_norm",), "clip grad_clip clip_grad grad_norm max_norm max_grad_norm gradient_clipping"),
    (("optimizer.name",), "optim optimiser optimizer"),
    (("schedule.kind",), "scheduler lr_scheduler lr_schedule schedule"),
    (("batch_size", "actors.images_per_step"), "b bs batch batchsize batch_size minibatch"),
    (("patch_size", "tile_size", "tile"), "patch patchsize patch_size crop crop_size tile tilesize tile_size gt_size"),
    (("tile_overlap",), "overlap tile_pad tile_padding pad padding"),
    (("self_ensemble",), "ensemble tta x8 geometric_ensemble"),
    (("model", "teacher", "students"), "m arch architecture net network ckpt checkpoint weights model model_path "
     "pretrained"),
    (("start",), "init_from finetune fine_tune pretrained_model resume_from"),
    (("labels_from",), "distill distil teacher"),
    (("validation.images", "validation"), "val valid val_dir val_data val_images validation eval_data"),
    (("validation.every",), "val_every val_freq eval_every val_interval"),
    (("checkpoint_every",), "save_every save_freq save_interval checkpoint_freq"),
    (("workers.gpus", "actors.gpus", "device"), "g gpu gpus num_gpus n_gpus ngpu ngpus cuda"),
    (("workers.count", "actors.max_size"), "j jobs num_workers n_workers workers worker nproc num_procs processes "
     "num_processes world_size parallel actors"),
    (("workers.threads", "actors.threads"), "num_threads n_threads nthreads"),
    (("precision", "actors.dtype"), "amp fp16 bf16 half mixed_precision dtype"),
    (("workers.ray_address", "actors.ray_address"), "ray address cluster ray_cluster head"),
    (("mlflow.enabled",), "mlflow track tracking log logging"),
    (("mlflow.tracking_uri",), "mlflow_uri tracking_server"),
    (("mlflow.run_name",), "name exp_name run_id"),
    (("samples",), "trials n_trials num_trials num_samples n_samples"),
    (("hours",), "timeout time max_time time_limit"),
    (("seeds", "seed"), "random_seed rng manual_seed seed seeds repeats"),
    (("overwrite",), "f y force replace clean"),
    (("dry_run",), "n dryrun dry plan"),
    (("source.lr_input",), "lr_dir lr_folder lr_path lq lq_dir dataroot_lq low_res"),
    (("pictures",), "save_images save_img save_pictures"),
)  # fmt: skip

#: Names whose setting counts something else.
NOTES = dict.fromkeys(["epoch", "epochs", "num_epochs", "max_epochs", "n_epochs"], "it counts steps, not epochs")


def current_name(name: str, known: Collection[str]) -> str:
    """Current name of a setting; logs a warning for former names.

    Args:
        name: dotted name.
        known: all dotted names.
    """
    if name not in known and SHORT.get(name) in known:
        return SHORT[name]
    new = RENAMED.get(name)
    if new is None or name in known or new not in known:
        return name
    log.warning("setting '%s' is called '%s' now; the former name will be refused in the next minor version", name, new)
    return new


def synonym(name: str, known: Collection[str]) -> tuple[str, str] | None:
    """The setting that a name probably means, and a note on the difference, which may be empty.

    Args:
        name: an unknown setting.
        known: all dotted names.
    """
    leaf = name.lower().replace("-", "_").rpartition(".")[2]
    for settings, others in SYNONYMS:
        if leaf in others.split():
            for setting in settings:
                if setting in known:
                    return setting, NOTES.get(leaf, "")
    return None
