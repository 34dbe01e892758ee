"""I-JEPA: from one block of an image's patches, predict what a slow copy of the network makes of other blocks.

Assran et al. 2023, arXiv:2301.08243. Official code: github.com/facebookresearch/ijepa (src/train.py).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.backbones.initialisation import init_as_beit
from unlabeled.backbones.transformer import EPSILON, Block
from unlabeled.backbones.vit import ViT, check_width, gather_tokens, sincos_position
from unlabeled.core.ranges import Channels, Count, Layers, Share, ShareSpan, Span
from unlabeled.core.seeding import to_device
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, MetricBound, Objective, Output, Plan, Progress
from unlabeled.objectives.parts import ema
from unlabeled.objectives.parts.arguments import check_range, check_shapes, needs_vit
from unlabeled.objectives.parts.patches.blocks import BlockRules, Blocks, draw_blocks
from unlabeled.objectives.parts.precision import full_precision
from unlabeled.objectives.parts.signs import TARGETS_ALIKE, spread_over_images


@full_precision
def ijepa_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Returns the smooth L1 distance (β = 1) of predicted tokens to the teacher's, mean over all of their values.

    Args:
        predictions: [B, M, n, D], of M blocks of n patches.
        targets: [B, M, n, D], from :func:`normalised_tokens`; get no gradient.

    Returns:
        Scalar; 0.425 for predictions of 0 and normally distributed targets.

    Raises:
        UserError: shapes that do not fit together.
    """
    check_shapes("ijepa_loss", {"predictions": (predictions, "BMND"), "targets": (targets, "BMND")})
    return F.smooth_l1_loss(predictions, targets.detach())


@full_precision
def normalised_tokens(tokens: Tensor) -> Tensor:
    """Returns tokens [B, L, D], each of mean 0 and variance 1 over its values (src/train.py, ``forward_target``)."""
    check_shapes("normalised_tokens", {"tokens": (tokens, "BLD")})
    return F.layer_norm(tokens, tokens.shape[-1:])


class Predictor(nn.Module):
    """Maps the context's tokens to tokens of the target blocks; tensors have their official names.

    Each block is predicted alone: the context and one mask token with a position for each of its patches go through the
    transformer together.

    Args:
        grid: patches along a side.
        in_features: width of the encoder's tokens.
        width, depth, heads: of the predictor's own blocks.
    """

    def __init__(self, grid: int, in_features: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        check_width(width, heads, "objective.predictor_")
        self.predictor_embed = nn.Linear(in_features, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        table = sincos_position(width, grid)[:, 1:].clone(memory_format=torch.contiguous_format)
        self.predictor_pos_embed = nn.Parameter(table, requires_grad=False)
        self.predictor_blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.predictor_norm = nn.LayerNorm(width, eps=EPSILON)
        self.predictor_proj = nn.Linear(width, in_features)
        init_as_beit(self, self.predictor_blocks)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, blocks: Blocks) -> Tensor:
        """Maps tokens [B, k, in_features] of ``blocks.context`` → [B, M, n, in_features] of ``blocks.targets``."""
        images, count, length = blocks.targets.shape
        table = self.predictor_pos_embed.expand(images, -1, -1)
        context = self.predictor_embed(tokens) + gather_tokens(table, blocks.context)
        asked = self.mask_token + gather_tokens(table, blocks.targets.flatten(1))
        asked = asked.view(images, count, length, -1)
        both = torch.cat([context[:, None].expand(-1, count, -1, -1), asked.to(context.dtype)], 2).flatten(0, 1)
        predicted = self.predictor_norm(self.predictor_blocks(both))[:, -length:]
        whole: Tensor = self.predictor_proj(predicted)
        return whole.view(images, count, length, -1)


def _encoder(backbone: Backbone, rules: BlockRules) -> ViT:
    """Returns ``backbone`` if it can be the encoder; the message has all that is wrong with it, and all to give."""
    keys = "backbone.class_token=false backbone.pooling=gap"
    if not isinstance(backbone, ViT):
        needs_vit("ijepa", backbone, further=f" with {keys}")
    assert isinstance(backbone, ViT)
    wrong, related = [], backbone.rel_pos_bias is not None
    if backbone.prefix or related:
        keys += " backbone.registers=0" if backbone.prefix > 1 else ""
        keys += " backbone.relative_position=false backbone.position=sincos" if related else ""
        wrong.append(f"objective=ijepa: its encoder sees some patches and nothing else: give {keys}")
    try:
        rules.check(backbone.grid)
    except UserError as error:
        wrong.append(str(error))
    if wrong:
        raise UserError("; and ".join(wrong))
    return backbone


class IJEPA(Objective):
    """Encoder, predictor and a teacher, which follows the encoder and is what is evaluated and published.

    The teacher sees the whole image, the encoder the context alone: see :func:`~.parts.patches.blocks.draw_blocks`.
    ``Output.features`` are the teacher's.

    Args:
        backbone: what is pretrained; one of the project's own ViTs, without class token and registers.
        predictor_width, predictor_depth, predictor_heads: of :class:`Predictor`.
        targets: blocks that are predicted, of each image.
        target_scale: smallest and largest share of the patches in one.
        target_ratio: smallest and largest height / width of one.
        context_scale: smallest and largest share of the patches in the context, before targets are removed.
        least_context: the context keeps more patches than this, while the draw allows it; with fewer than 196 patches
            the same share of them.
        momentum, final_momentum: of the teacher, from the first step to the last along a line.

    Raises:
        UserError: another backbone, or blocks that have no place in its patches.
    """

    backbone: ViT
    shapes_vary = True  # sizes of blocks

    def __init__(
        self,
        backbone: Backbone,
        predictor_width: Channels,
        predictor_depth: Layers,
        predictor_heads: Channels,
        targets: Count,
        target_scale: ShareSpan,
        target_ratio: Span,
        context_scale: ShareSpan,
        least_context: Count,
        momentum: Share,
        final_momentum: Share,
    ) -> None:
        super().__init__()
        check_range("objective", most=1, at_least=True, momentum=momentum, final_momentum=final_momentum)
        self.rules = BlockRules(targets, _pair(target_scale), _pair(target_ratio), _pair(context_scale), least_context)
        self.backbone = vit = _encoder(backbone, self.rules)
        shape = (predictor_width, predictor_depth, predictor_heads)
        self.predictor: nn.Module = Predictor(vit.grid, vit.num_features, *shape)
        self.teacher_backbone = ema.without_drop_path(ema.frozen_copy(self.backbone))
        self.momentum, self.final_momentum = momentum, final_momentum

    def product(self) -> Backbone:
        return self.teacher_backbone

    def check(self, plan: Plan) -> None:
        """Refuses a second view, which I-JEPA would not use."""
        plan.needs_views(1, 1)

    def scheduled_values(self, progress: Progress, plan: Plan) -> dict[str, float]:
        return {"momentum": self._momentum_at(progress)}

    def _momentum_at(self, progress: Progress) -> float:
        return ema.momentum_at(progress.fraction, self.momentum, self.final_momentum, "linear")

    def forward(self, batch: Batch, progress: Progress) -> Output:
        images = batch.views[0]
        drawn = draw_blocks(progress, len(images), self.backbone.grid, self.rules)
        blocks = Blocks(*(to_device(each, images.device) for each in drawn))
        predictions = self.predictor(self.backbone.tokens(images, blocks.context), blocks)
        tokens = self._teach(images)
        whole = normalised_tokens(tokens)
        targets = gather_tokens(whole, blocks.targets.flatten(1)).view_as(predictions)
        loss = ijepa_loss(predictions, targets)
        features = self.teacher_backbone.pool(tokens).detach()
        return Output(loss, features, {"target_std": spread_over_images(whole)}, targets=targets.flatten(0, 2))

    @torch.no_grad()
    def _teach(self, images: Tensor) -> Tensor:
        """Returns the teacher's tokens of whole images, [B, L, D]."""
        return self.teacher_backbone.tokens(images)

    def after_step(self, progress: Progress) -> None:
        """Updates θ_teacher ← m·θ_teacher + (1 − m)·θ_encoder with the weights after the step."""
        ema.update(self.teacher_backbone, self.backbone, self._momentum_at(progress))

    def teacher_student_pairs(self) -> Sequence[tuple[nn.Module, nn.Module]]:
        return ((self.teacher_backbone, self.backbone),)

    def metric_bounds(self, plan: Plan) -> Sequence[MetricBound]:
        """Bounds how much targets differ between images."""
        return (TARGETS_ALIKE,)

    def collapsed_at(self, plan: Plan) -> float | None:
        """Returns 0: equal targets are predicted without an error."""
        return 0.0


def _pair(span: Sequence[float]) -> tuple[float, float]:
    """Returns a pair of a list from a yaml."""
    return span[0], span[1]
