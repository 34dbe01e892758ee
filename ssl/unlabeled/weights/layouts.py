"""Checkpoint layouts of other projects: where the backbone lies, and what else the file holds and is left out.

A file is read as one flat list of tensors, each with its whole path, e.g. ``state_dict.encoder_q.conv1.weight``,
without the words that wrappers add (``module``, ``_orig_mod``). Each layout was taken from the repository named beside
it.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
ROOTS = ("state_dict.", "model_state_dict.", "model.", "")  # prefixes of a state dict in a file

# First words of paths that hold no network for features.
TRAINING = {
    "optimizer": "optimizer",
    "optimizer_states": "optimizer",
    "opt": "optimizer",
    "scheduler": "schedule",
    "sched": "schedule",
    "lr_scheduler": "schedule",
    "lr_schedulers": "schedule",
    "scaler": "loss scale",
    "amp": "loss scale",
    "amp_scaler": "loss scale",
    "fp16_scaler": "loss scale",
    "dino_loss": "loss",
    "ibot_loss": "loss",
    "loss": "loss",
    "criterion": "loss",
    "best_acc1": "accuracy",
    "best_acc": "accuracy",
    "best_top1_acc": "accuracy",
    "callbacks": "state of the run",
    "loops": "state of the run",
    "faults": "state of the run",
    "message_hub": "state of the run",
    "param_schedulers": "schedule",
    "hyper_parameters": "settings",
    "args": "settings",
    "model_ema": "momentum copy",
    "state_dict_ema": "momentum copy",
}
CLASSIFIER = {"fc.": "classifier", "head.": "classifier", "heads.": "classifier", "classifier.": "classifier"}
# What stands for a masked patch in DINOv2 and in iBOT's student, beside a backbone that masks nothing any more
MASK_TOKENS = {"mask_token": "mask token", "masked_embed": "mask token"}
AROUND = CLASSIFIER | {  # parts beside a backbone, in solo-learn, lightly and many others
    "projector": "projector",
    "projection_head": "projector",
    "predictor": "predictor",
    "prediction_head": "predictor",
    "prototypes": "prototypes",
    "queue": "queue",
    "local_memory": "memory bank",
    "criterion.": "loss",
    "dino_loss_func.": "loss",
    "decoder": "decoder",
    "mask_token": "decoder",
    "momentum_": "momentum copy",
    "backbone_momentum.": "momentum copy",
    "projection_head_momentum.": "momentum copy",
    "online_classifier.": "classifier",
}

_OFFSETS = "rel_pos_bias.relative_position_index"  # of BEiT's shared bias of attention

# Parts of stable-pretraining's Module and buffers of its TeacherStudentWrapper
_STABLE = {"callbacks_modules.": "classifier", "callbacks_metrics.": "accuracy", "dino_loss.": "loss"}
_STABLE |= {f"backbone.{end}ema_coefficient": "schedule" for end in ("", "base_", "final_")}


@dataclass(frozen=True)
class CheckpointLayout:
    """Describes how one project writes its checkpoints."""

    name: str
    part: str  # which of several encoders is the backbone
    backbone: str  # prefix of its names
    others: Mapping[str, str] = field(default_factory=dict)  # prefix → name of the part; "" uses the prefix itself
    marks: tuple[str, ...] = ()  # prefixes that must exist in this layout
    roots: tuple[str, ...] = ("",)
    views: str = ""  # views whose mean and std it was trained with, if not ImageNet's
    exclusive: bool = False  # True: every tensor must be of ``backbone`` or of a known part

    def at(self, root: str) -> "CheckpointLayout":
        """Returns the layout with whole paths, for a state dict that lies under ``root``."""
        others = {root + beginning: what for beginning, what in self.others.items()}
        return replace(
            self, backbone=root + self.backbone, others=others, marks=tuple(root + mark for mark in self.marks)
        )

    def fits(self, names: Collection[str]) -> bool:
        """Checks whether tensors of these names have this layout; for a layout with whole paths."""
        marks = self.marks or (self.backbone,)
        if not all(any(name.startswith(mark) for name in names) for mark in marks):
            return False
        return not self.exclusive or all(name.startswith(self.backbone) or self.name_part(name) for name in names)

    def name_part(self, name: str) -> str | None:
        """Returns the known part, other than the backbone, that a tensor belongs to."""
        beginnings = [beginning for beginning in self.others if name.startswith(beginning)]
        if not beginnings:
            return TRAINING.get(name.partition(".")[0])
        longest = max(beginnings, key=len)
        return self.others[longest] or name.removeprefix(longest).partition(".")[0]


def _below(word: str) -> CheckpointLayout:
    """Makes the layout of a backbone that lies under ``word`` in a larger module, with or without its classifier."""
    classifier = {f"{word}.{beginning}": what for beginning, what in CLASSIFIER.items()}
    return CheckpointLayout(
        f"state dict below {word}.", word, f"{word}.", AROUND | classifier, roots=ROOTS, exclusive=word != "backbone"
    )


LAYOUTS = (
    CheckpointLayout(
        "own run",
        "the objective's backbone",
        "objective.backbone.",
        {"objective.": "", "": ""},
        roots=("state_dict.", ""),
    ),
    # github.com/open-mmlab/mmselfsup, models/algorithms: ``backbone`` and ``neck``; encoder_q and online_net of its
    # first version are second names of the same tensors
    CheckpointLayout(
        "mmselfsup",
        "backbone",
        "backbone.",
        {
            "neck.": "projector",
            "head.": "predictor",
            "predictor.": "predictor",
            "encoder_q.": "second names of the backbone",
            "base_encoder.": "second names of the backbone",
            "online_net.": "second names of the backbone",
            "encoder_k.": "momentum copy",
            "momentum_encoder.": "momentum copy",
            "target_net.": "momentum copy",
            "queue": "queue",
            "data_preprocessor.": "mean and std",
        },
        ("backbone.", "neck."),
        ("state_dict.", ""),
    ),
    # github.com/facebookresearch/moco, moco/builder.py; version 2 has an MLP for its last layer
    *(
        CheckpointLayout(
            f"MoCo {version}",
            "query encoder",
            "encoder_q.",
            {"encoder_q.fc.": "projector", "encoder_k.": "momentum copy", "queue": "queue"},
            marks,
            ("state_dict.", ""),
        )
        for version, marks in (
            ("v1", ("encoder_q.fc.weight",)),
            ("v2", ("encoder_q.fc.0.",)),
            ("v1 or v2", ("encoder_q.",)),
        )
    ),
    # github.com/facebookresearch/moco-v3, moco/builder.py: ResNets end in fc, ViTs in head
    CheckpointLayout(
        "MoCo v3",
        "base encoder",
        "base_encoder.",
        {
            "base_encoder.fc.": "projector",
            "base_encoder.head.": "projector",
            "momentum_encoder.": "momentum copy",
            "predictor.": "predictor",
        },
        roots=("state_dict.", ""),
    ),
    # github.com/bytedance/ibot, main_ibot.py: as DINO's, with a last layer of its own for patches
    CheckpointLayout(
        "iBOT",
        "teacher, as in the official evaluation",
        "teacher.backbone.",
        {"teacher.head.": "projector", "student.": "student"},
        ("teacher.backbone.", "ibot_loss."),
    ),
    # github.com/facebookresearch/dinov2, train/train.py: teacher_checkpoint.pth, of which do_test writes no student
    CheckpointLayout(
        "DINOv2",
        "teacher, as in the official evaluation",
        "teacher.backbone.",
        {
            "teacher.dino_head.": "projector",
            "teacher.ibot_head.": "projector",
            "teacher.backbone.mask_token": "mask token",
        },
        ("teacher.backbone.", "teacher.dino_head."),
    ),
    # github.com/facebookresearch/dino, main_dino.py; its evaluation takes --checkpoint_key teacher
    CheckpointLayout(
        "DINO",
        "teacher, as in the official evaluation",
        "teacher.backbone.",
        {"teacher.head.": "projector", "student.": "student"},
    ),
    # github.com/facebookresearch/mae, models_mae.py: encoder and decoder on one level
    CheckpointLayout(
        "MAE",
        "encoder",
        "",
        {"decoder_": "decoder", "mask_token": "decoder"},
        ("decoder_embed.", "patch_embed."),
        ROOTS,
    ),
    # github.com/facebookresearch/swav, src/resnet50.py; DeepCluster-v2 of the same repository likewise
    CheckpointLayout(
        "SwAV",
        "encoder",
        "",
        {"projection_head.": "projector", "prototypes": "prototypes"},
        ("projection_head.", "conv1."),
        ROOTS,
        views="swav",
    ),
    # github.com/facebookresearch/barlowtwins, main.py: checkpoint.pth; its resnet50.pth is a plain state dict
    CheckpointLayout(
        "Barlow Twins",
        "backbone",
        "backbone.",
        {"projector.": "projector", "bn.": "normalisation of the projections"},
        ("backbone.", "projector.", "bn.running_mean"),
        ROOTS,
    ),
    # github.com/facebookresearch/vicreg, main_vicreg.py: model.pth; its resnet50.pth is a plain state dict
    CheckpointLayout(
        "VICReg",
        "backbone",
        "backbone.",
        {"projector.": "projector"},
        ("backbone.conv1.", "projector.0.", "projector.6."),
        ("model.",),
        exclusive=True,
    ),
    # github.com/facebookresearch/simsiam, simsiam/builder.py: the projector is the encoder's fc
    CheckpointLayout(
        "SimSiam",
        "encoder",
        "encoder.",
        {"encoder.fc.": "projector", "predictor.": "predictor"},
        ("encoder.fc.0.", "predictor.0."),
        ("state_dict.", ""),
    ),
    # github.com/google-deepmind/deepmind-research, byol (weights/haiku/names.py): the online network is evaluated
    CheckpointLayout(
        "BYOL",
        "online network, as in the official evaluation",
        "online.backbone.",
        {
            "online.projector.": "projector",
            "online.predictor.": "predictor",
            "online.classifier.": "classifier",
            "target.": "momentum copy",
            "sums.": "sums of BatchNorm's statistics",
            "rng": "state of the run",
        },
        ("online.backbone.", "target.backbone."),
    ),
    # github.com/facebookresearch/ijepa, src/train.py: save_checkpoint; its evaluation takes the target encoder
    CheckpointLayout(
        "I-JEPA",
        "target encoder, as in the official evaluation",
        "target_encoder.",
        {"encoder.": "trained copy", "predictor.": "predictor"},
        ("target_encoder.patch_embed.", "encoder.patch_embed.", "predictor.predictor_embed."),
    ),
    # github.com/microsoft/SimMIM, models/simmim.py and utils.py; indices of offsets follow from the number of patches
    CheckpointLayout(
        "SimMIM",
        "encoder",
        "encoder.",
        {"decoder.": "decoder", "encoder.mask_token": "decoder", f"encoder.{_OFFSETS}": "indices of offsets"},
        ("encoder.patch_embed.", "encoder.mask_token", "decoder.0."),
        ROOTS,
    ),
    # github.com/facebookresearch/data2vec_vision, beit/modeling_cyclical.py: run_class_finetuning.py takes "model", the
    # student; BEiT's own files (github.com/microsoft/unilm) likewise
    CheckpointLayout(
        "BEiT or data2vec",
        "trained network, as in the official fine-tuning",
        "",
        {"mask_token": "decoder", "lm_head.": "decoder", _OFFSETS: "indices of offsets"},
        ("lm_head.", "mask_token", "blocks.0.attn.q_bias"),
        ROOTS,
    ),
    # github.com/facebookresearch/fairseq, examples/data2vec/models/data2vec_vision.py and fairseq/checkpoint_utils.py
    CheckpointLayout(
        "data2vec (fairseq)",
        "trained network",
        "model.",
        {
            "model.mask_emb": "decoder",
            "model.final_proj.": "decoder",
            "model._ema.": "momentum copy",
            f"model.encoder.{_OFFSETS}": "indices of offsets",
            "last_optimizer_state.": "optimizer",
            "extra_state.": "state of the run",
            "task_state.": "state of the run",
        },
        ("model.cls_emb", "model.mask_emb", "model.encoder.blocks."),
    ),
    # github.com/huggingface/transformers, models/data2vec, models/beit, models/vit, models/ijepa
    *(
        CheckpointLayout(
            "Hugging Face transformers",
            "the network",
            prefix,
            {
                f"{prefix}embeddings.mask_token": "decoder",
                f"{prefix}encoder.relative_position_bias.relative_position_index": "indices of offsets",
                f"{prefix}pooler.": "classifier",
                "classifier.": "classifier",
                "lm_head.": "decoder",
            },
            (f"{prefix}embeddings.patch_embeddings.projection.", f"{prefix}encoder.layer.0.attention.attention.query."),
            ROOTS,
        )
        for prefix in ("", "data2vec_vision.", "beit.", "vit.", "ijepa.")
    ),
    # github.com/facebookresearch/msn, src/msn_train.py; its evaluations take the target encoder
    CheckpointLayout(
        "MSN",
        "target encoder, as in the official evaluation",
        "target_encoder.",
        {"target_encoder.fc.": "projector", "encoder.": "trained copy", "prototypes": "prototypes"},
        ("target_encoder.", "encoder.fc.fc1.", "prototypes"),
    ),
    # github.com/facebookresearch/suncet, src/paws_train.py and src/resnet.py
    CheckpointLayout(
        "PAWS",
        "encoder",
        "encoder.",
        {"encoder.fc.": "projector", "encoder.pred.": "predictor", "target_encoder.": "momentum copy"},
        ("encoder.fc.fc1.",),
    ),
    # github.com/Separius/SimCLRv2-Pytorch, convert.py: from google-research/simclr
    CheckpointLayout(
        "SimCLR v2 (Separius/SimCLRv2-Pytorch)",
        "encoder",
        "resnet.",
        {"resnet.fc.": "classifier", "head.": "projector"},
        ("resnet.net.0.0.",),
        views="simclr",
    ),
    # github.com/facebookresearch/vissl, vissl/utils/checkpoint.py
    CheckpointLayout(
        "VISSL",
        "trunk",
        "base_model.model.trunk.",
        {
            "base_model.model.heads.": "heads",
            "base_model.loss.": "loss",
            "loss.": "loss",
            "optimizer.": "optimizer",
            "amp.": "loss scale",
        },
        roots=("classy_state_dict.",),
    ),
    # github.com/galilai-group/stable-pretraining, module.py and backbone/utils.py: its probes read the teacher
    CheckpointLayout(
        "stable-pretraining",
        "teacher, as in its probes",
        "backbone.teacher.",
        AROUND | _STABLE | {"backbone.student.": "student"},
        ("backbone.teacher.", "backbone.student."),
        ROOTS,
    ),
    CheckpointLayout(
        "stable-pretraining", "backbone", "backbone.", AROUND | _STABLE, ("backbone.", "callbacks_"), ROOTS
    ),
    # github.com/lightly-ai/lightly, benchmarks/imagenet: the trained copy has the longer name, and a ViT of timm lies
    # in models/modules/masked_vision_transformer_timm.py
    *(
        CheckpointLayout(
            "lightly",
            "backbone, the momentum copy, as in lightly's benchmarks",
            f"backbone.{inner}",
            AROUND | {copy: "trained copy", "backbone.mask_token": "decoder"},
            (f"backbone.{inner}", f"{copy}backbone."),
            ROOTS,
        )
        for inner in ("vit.", "")
        for copy in ("student_", "query_", "online_")
    ),
    CheckpointLayout(
        "lightly",
        "backbone",
        "backbone.vit.",
        AROUND | {"backbone.mask_token": "decoder"},
        ("backbone.vit.patch_embed.",),
        ROOTS,
    ),
    CheckpointLayout("lightly", "backbone", "backbone.", AROUND, ("backbone.", "projection_head."), ROOTS),
    CheckpointLayout("lightly", "backbone", "backbone.", AROUND, ("backbone.", "online_classifier."), ROOTS),
    # github.com/vturrisi/solo-learn, solo/methods/base.py; "encoder" in its first versions
    *(
        CheckpointLayout("solo-learn", "backbone", f"{word}.", AROUND, (f"{word}.", "classifier.weight"), ROOTS)
        for word in ("backbone", "encoder")
    ),
    *(_below(word) for word in ("backbone", "encoder", "trunk", "resnet", "net")),
    # torchvision, timm, tonylins/simclr-converter, dino_*_pretrain.pth, mae_pretrain_*.pth
    CheckpointLayout("plain state dict", "the network", "", CLASSIFIER, roots=("model.",), exclusive=True),
    _below("model"),
    CheckpointLayout("plain state dict", "the network", "", CLASSIFIER | MASK_TOKENS, roots=ROOTS),
)


def strip_wrappers(path: str) -> str:
    """Returns a tensor's path without the words that wrappers add."""
    return ".".join(word for word in path.split(".") if word not in WRAPPERS)


def recognize_layout(names: Collection[str]) -> CheckpointLayout:
    """Returns, with whole paths, the first layout that tensors of these :func:`strip_wrappers` names fit."""
    return next(layout for layout in placed_layouts() if layout.fits(names))


def placed_layouts() -> Iterator[CheckpointLayout]:
    """Yields every layout with whole paths, for each place that its state dict may have in a file."""
    return (layout.at(root) for layout in LAYOUTS for root in layout.roots)
