"""What other tools call our keys, so that a habit is answered with the key that is meant."""

import difflib
from collections.abc import Collection, Iterable

from unlabeled.core.phrases import shorten_list

MOST = 30  # names that a message lists; --help has all

# Each name with the keys that it may mean, in order: the first whose beginning the command has is named.
ALIASES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ["lr", "learning_rate", "base_lr", "blr", "max_lr"], ("optimizer.lr", "recipe.learning_rate", "detection.lr")
    ),
    **dict.fromkeys(["wd", "weight_decay", "decay"], ("optimizer.weight_decay", "detection.weight_decay")),
    **dict.fromkeys(["warmup", "warmup_epochs", "warm_up"], ("optimizer.warmup_epochs",)),
    **dict.fromkeys(["momentum"], ("optimizer.optimizer.momentum",)),
    **dict.fromkeys(["betas"], ("optimizer.optimizer.betas",)),
    **dict.fromkeys(["epochs", "epoch", "num_epochs", "n_epochs", "trainer.max_epochs"], ("max_epochs",)),
    **dict.fromkeys(["steps", "num_steps", "iterations", "iters", "trainer.max_steps"], ("max_steps",)),
    **dict.fromkeys(["batch", "bs", "b", "batchsize", "global_batch_size", "data.batch_size"], ("batch_size",)),
    **dict.fromkeys(["workers", "j", "n_workers", "num_worker", "data.num_workers"], ("num_workers",)),
    **dict.fromkeys(["gpus", "gpu", "ngpus", "num_gpus", "n_gpus", "devices"], ("trainer.devices", "accelerator")),
    **dict.fromkeys(["nodes", "num_nodes"], ("trainer.num_nodes",)),
    **dict.fromkeys(["device", "cpu", "cuda", "accelerator"], ("trainer.accelerator", "accelerator", "device")),
    **dict.fromkeys(["precision", "amp", "fp16", "bf16"], ("trainer.precision", "precision")),
    **dict.fromkeys(["strategy", "ddp", "fsdp"], ("trainer.strategy",)),
    **dict.fromkeys(["clip", "clip_grad", "gradient_clip_val", "grad_clip"], ("trainer.gradient_clip_val",)),
    **dict.fromkeys(
        ["accum_iter", "grad_accum", "accumulate_grad_batches", "trainer.accumulate_grad_batches"], ("accumulate",)
    ),
    **dict.fromkeys(["arch", "a", "model", "network", "encoder", "net"], ("backbone",)),
    **dict.fromkeys(["dataset", "datasets"], ("data",)),
    **dict.fromkeys(["data_path", "data_dir", "path", "root", "train_dir", "imagenet", "data_root"], ("data.path",)),
    **dict.fromkeys(["method", "loss", "algorithm", "algo"], ("objective",)),
    **dict.fromkeys(["augmentation", "augmentations", "transform", "transforms", "aug"], ("views",)),
    **dict.fromkeys(["image_size", "img_size", "crop_size", "input_size", "size"], ("views.size", "data.image_size")),
    **dict.fromkeys(["opt", "optim"], ("optimizer",)),
    **dict.fromkeys(["temperature", "temp", "tau", "t", "moco_t"], ("objective.temperature",)),
    **dict.fromkeys(["projection_dim", "proj_dim", "moco_dim"], ("objective.projection_dim",)),
    **dict.fromkeys(["queue_size", "moco_k"], ("objective.queue_size",)),
    **dict.fromkeys(
        ["output", "output_dir", "save_dir", "log_dir", "outdir", "exp_dir"], ("run_dir", "report_dir", "out")
    ),
    **dict.fromkeys(["trainer.default_root_dir", "dir", "folder"], ("run_dir", "run", "out")),
    **dict.fromkeys(["out"], ("run_dir", "report_dir")),
    **dict.fromkeys(["ckpt", "checkpoint_path", "weights", "pretrained", "load"], ("checkpoint",)),
    **dict.fromkeys(["random_seed", "manual_seed"], ("seed",)),
    **dict.fromkeys(["exp", "config", "recipe", "cfg"], ("experiment",)),
    **dict.fromkeys(["exp_name", "experiment_name", "run_name"], ("name",)),
    **dict.fromkeys(["log", "loggers", "wandb", "trainer.logger"], ("logger",)),
    **dict.fromkeys(["log_every", "print_freq", "trainer.log_every_n_steps"], ("log_every_n_steps",)),
    **dict.fromkeys(["save_every", "save_freq", "checkpoint_every"], ("checkpoint_every_n_epochs",)),
    **dict.fromkeys(["probes", "evaluation", "eval"], ("probe",)),
    **dict.fromkeys(["dry_run", "plan"], ("plan_only",)),
    **dict.fromkeys(["target", "format"], ("to",)),
}


def meant(key: str, known: Collection[str]) -> str | None:
    """The key that a habit of other tools means, where the command has one.

    Args:
        key: as typed, with underscores or dashes, whole or below a group.
        known: keys and groups at the top of the command.
    """
    for option in ALIASES.get(key.lower().replace("-", "_"), ()):
        if option.split(".")[0] in known:
            return option
    return None


def nearest(name: str, allowed: Iterable[str], prefix: str = "") -> str:
    """What is meant by a wrong name; where nothing is like it, all that may stand in its place.

    Args:
        name: the last part of the key.
        allowed: names in its place.
        prefix: what stands before it.
    """
    allowed = sorted(option for option in allowed if not option.startswith("_"))
    whole = f"{prefix}." if prefix else ""
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    suggestion = (meant(f"{whole}{name}", allowed) if not prefix else None) or (f"{whole}{close[0]}" if close else None)
    return f"did you mean {suggestion}?" if suggestion else f"(allowed: {shorten_list(allowed, MOST)})"
