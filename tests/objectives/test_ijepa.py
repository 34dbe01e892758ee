"""I-JEPA against loops, a network written out by hand, the official rules of its blocks, and the order of steps."""

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.literal_vit import literal_blocks, literal_embedding, literal_linear, literal_norm
from tests.objectives.two_views import assert_bf16_within_a_hundredth, assert_same_loss_and_gradients, draw
from unlabeled import distributed
from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.vit import Block, ViT
from unlabeled.errors import UserError
from unlabeled.objective import Batch, Plan, Progress
from unlabeled.objectives.ijepa import IJEPA, Predictor, ijepa_loss, normalised_tokens
from unlabeled.objectives.parts.patches.blocks import TRIES, BlockRules, block_size, draw_blocks, drawn_sizes

AT = Progress(5, 20, 5, 0)
OFFICIAL = BlockRules(4, (0.15, 0.2), (0.75, 1.5), (0.85, 1.0), 10)
RULES = {"targets": 4, "target_scale": (0.15, 0.2), "target_ratio": (0.75, 1.5), "context_scale": (0.85, 1.0)}


def make_vit(**changed: Any) -> ViT:
    given: dict[str, Any] = {"pooling": "gap", "class_token": False, "initialisation": "beit"}
    return ViT(16, 2, 8, 2, 2, **(given | changed))


def make_objective(backbone: Any = None, **changed: Any) -> IJEPA:
    torch.manual_seed(0)
    given: dict[str, Any] = {"predictor_width": 12, "predictor_depth": 2, "predictor_heads": 3, "least_context": 10}
    given |= RULES | {"momentum": 0.9, "final_momentum": 1.0}
    return IJEPA(backbone or make_vit(), **(given | changed)).double()


def make_batch(images: int = 3, seed: int = 1) -> Batch:
    ids = torch.arange(images)
    view = draw(images, 3, 16, 16, seed=seed)
    return Batch(torch.zeros(images, 3, 16, 16, dtype=torch.uint8), ids, ids, (view,))


# the loss


def literal_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Smooth L1 (arXiv:1504.08083, eq. 3), one value at a time."""
    total = predictions.new_zeros(())
    for p, t in zip(predictions.flatten(), targets.detach().flatten(), strict=True):
        far = (p - t).abs()
        total = total + (0.5 * far**2 if far < 1 else far - 0.5)
    return total / predictions.numel()


def test_the_loss_and_its_gradients_equal_a_loop_and_targets_get_none() -> None:
    inputs = [(1.5 * draw(2, 3, 2, 4, seed=seed)).requires_grad_() for seed in range(2)]
    assert_same_loss_and_gradients(ijepa_loss, literal_loss, inputs)
    [of_targets] = torch.autograd.grad(ijepa_loss(*inputs), inputs[1], allow_unused=True)
    assert of_targets is None


def test_nothing_predicted_of_normal_targets_costs_0_425_and_equal_targets_0() -> None:
    targets = draw(64, 4, 8, 128)
    exact = 0.5 * (math.erf(0.5**0.5) - 2 * pdf(1)) + 2 * pdf(1) - 0.5 * (1 - math.erf(0.5**0.5))
    assert exact == pytest.approx(0.4247, abs=1e-4)
    assert float(ijepa_loss(torch.zeros_like(targets), targets)) == pytest.approx(exact, abs=2e-3)
    alike = normalised_tokens(draw(1, 1, 8).expand(2, 12, 8)).view(2, 3, 4, 8)
    assert float(ijepa_loss(alike, alike)) == make_objective().collapsed_at(Plan(8, 1, 100, (16,))) == 0


def pdf(x: float) -> float:
    return math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def test_each_target_token_is_normalised_over_its_own_values() -> None:
    tokens = draw(2, 3, 5)
    for image, found in zip(tokens, normalised_tokens(tokens), strict=True):
        for token, values in zip(image.tolist(), found.tolist(), strict=True):
            mean = sum(token) / 5
            deviation = math.sqrt(sum((value - mean) ** 2 for value in token) / 5 + 1e-5)
            assert values == pytest.approx([(value - mean) / deviation for value in token], abs=1e-14)


def test_in_bfloat16_the_loss_is_float32_and_within_one_per_cent() -> None:
    assert_bf16_within_a_hundredth(ijepa_loss, [draw(4, 4, 6, 32, seed=seed) for seed in range(2)])


# the network


def literal_step(objective: IJEPA, image: Tensor, context: list[int], targets: list[list[int]]) -> tuple[Any, Any]:
    """Predictions and targets [M, n, D] of one image, from the tensors of encoder, predictor and teacher."""
    encoder, predictor, teacher = (
        dict(each.named_parameters()) for each in (objective.backbone, objective.predictor, objective.teacher_backbone)
    )
    seen = (literal_embedding(image, encoder) + encoder["pos_embed"][0])[context]
    seen = literal_norm(literal_blocks(seen, encoder, "blocks", 2), encoder, "norm")
    table = predictor["predictor_pos_embed"][0]
    seen = literal_linear(seen, predictor, "predictor_embed") + table[context]
    predictions = []
    for block in targets:
        x = torch.cat([seen, predictor["mask_token"][0] + table[block]])
        x = literal_norm(literal_blocks(x, predictor, "predictor_blocks", 3), predictor, "predictor_norm")
        predictions.append(literal_linear(x[len(context) :], predictor, "predictor_proj"))
    whole = literal_embedding(image, teacher) + teacher["pos_embed"][0]
    whole = literal_norm(literal_blocks(whole, teacher, "blocks", 2), teacher, "norm")
    centred = whole - whole.mean(1, keepdim=True)
    whole = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return torch.stack(predictions), torch.stack([whole[block] for block in targets])


def with_other_values(objective: IJEPA) -> IJEPA:
    """Biases, norms and a teacher that are not those of a fresh network."""
    for parameter in [*objective.parameters()]:
        if parameter.requires_grad or parameter.ndim < 3:
            torch.nn.init.normal_(parameter, std=0.3)
    return objective


def test_loss_and_every_gradient_equal_a_network_written_out_by_hand() -> None:
    objective, batch = with_other_values(make_objective()), make_batch()
    output = objective(batch, AT)
    drawn = draw_blocks(AT, 3, 8, objective.rules)
    pairs = [
        literal_step(objective, image, context.tolist(), targets.tolist())
        for image, context, targets in zip(batch.views[0], *drawn, strict=True)
    ]
    expected = literal_loss(*(torch.stack(each) for each in zip(*pairs, strict=True)))
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=1e-12)
    trained = {name: each for name, each in objective.named_parameters() if each.requires_grad}
    ours = torch.autograd.grad(output.loss, list(trained.values()))
    theirs = torch.autograd.grad(expected, list(trained.values()))
    for name, one, other in zip(trained, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=name)
    assert not any(name.startswith("teacher_backbone") for name in trained)


def test_the_encoder_sees_the_context_the_teacher_everything_and_its_mean_of_patches_are_the_features() -> None:
    objective, batch = make_objective(), make_batch()
    lengths: list[int] = []
    for network in (objective.backbone, objective.teacher_backbone):
        network.norm.register_forward_hook(lambda module, given, made: lengths.append(made.shape[1]))
    output = objective(batch, AT)
    context, targets = draw_blocks(AT, 3, 8, objective.rules)
    assert lengths == [context.shape[1], 64]
    torch.testing.assert_close(output.features, objective.teacher_backbone(batch.views[0]))
    assert not output.features.requires_grad
    assert output.targets is not None
    assert output.targets.shape == (targets.numel(), 8)
    changed = batch.views[0].clone()
    hidden = torch.ones(3, 64, dtype=torch.bool).scatter(1, context, False).view(3, 1, 8, 8)
    hidden = hidden.repeat_interleave(2, 2).repeat_interleave(2, 3)
    changed[hidden.expand_as(changed)] += 1
    tokens = [objective.backbone.tokens(each, context) for each in (batch.views[0], changed)]
    assert torch.equal(tokens[0], tokens[1])


def test_the_official_tensors_of_encoder_and_predictor_have_their_shapes() -> None:
    """IN1K-vit.h.14-300e.pth.tar; the encoder has 630 million parameters beside its positions."""
    with torch.device("meta"):
        encoder = ViT(224, 14, 1280, 32, 16, class_token=False, pooling="gap")
        predictor = Predictor(16, 1280, 384, 12, 16)
    assert encoder.pos_embed is not None
    assert encoder.pos_embed.shape == (1, 256, 1280)
    assert sum(each.numel() for each in encoder.parameters() if each.requires_grad) == 630_434_560
    shapes = {name: tuple(each.shape) for name, each in predictor.state_dict().items() if "blocks" not in name}
    assert shapes == {
        "predictor_embed.weight": (384, 1280),
        "predictor_embed.bias": (384,),
        "mask_token": (1, 1, 384),
        "predictor_pos_embed": (1, 256, 384),
        "predictor_norm.weight": (384,),
        "predictor_norm.bias": (384,),
        "predictor_proj.weight": (1280, 384),
        "predictor_proj.bias": (1280,),
    }
    assert len([name for name in predictor.state_dict() if name.startswith("predictor_blocks.")]) == 12 * 12


@pytest.mark.parametrize("part", ["backbone", "predictor"])
def test_what_a_block_adds_begins_divided_by_the_root_of_twice_its_number(part: str) -> None:
    torch.manual_seed(0)
    vit, predictor = ViT(8, 2, 128, 3, 2, initialisation="beit"), Predictor(4, 8, 128, 3, 2)
    for number, block in enumerate(vit.blocks if part == "backbone" else predictor.predictor_blocks, 1):
        assert isinstance(block, Block)
        layers = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
        spreads = [float(each.weight.detach().std()) for each in layers]
        divided = 0.02 / math.sqrt(2 * number)
        assert spreads == pytest.approx([0.02, divided, 0.02, divided], rel=0.03)


# blocks: src/masks/multiblock.py


def official_size(u: float, scale: tuple[float, float], ratio: tuple[float, float], grid: int) -> tuple[int, int]:
    """As ``_sample_block_size`` says it: one number decides share and ratio, and a side of the grid is never whole."""
    area = int(grid * grid * (scale[0] + u * (scale[1] - scale[0])))
    aspect = ratio[0] + u * (ratio[1] - ratio[0])
    sides = [round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)]
    while max(sides) >= grid:
        sides = [side - 1 if side >= grid else side for side in sides]
    return sides[0], sides[1]


@pytest.mark.parametrize("grid", [14, 16])
def test_over_20_000_batches_areas_and_ratios_are_distributed_as_the_official_rules_say(grid: int) -> None:
    found = [drawn_sizes(Progress(step, 20_000, 100, 0), grid, OFFICIAL) for step in range(20_000)]
    even = [(step + 0.5) / 20_000 for step in range(20_000)]
    for part, (scale, ratio) in enumerate([(OFFICIAL.target_scale, OFFICIAL.target_ratio), ((0.85, 1.0), (1.0, 1.0))]):
        counts = Counter(sizes[part] for sizes in found)
        expected = Counter(official_size(u, scale, ratio, grid) for u in even)
        assert counts.keys() == expected.keys()
        chi = sum((counts[size] - number) ** 2 / number for size, number in expected.items())
        assert chi < len(expected) - 1 + 5 * math.sqrt(2 * len(expected))
    areas = [height * width / grid**2 for (height, width), _ in found]
    ratios = [height / width for (height, width), _ in found]
    assert (min(areas), max(areas)) == pytest.approx((0.15, 0.2), abs=0.02)
    assert (min(ratios), max(ratios)) == pytest.approx((0.75, 1.5), abs=0.12)


@pytest.mark.parametrize("grid", [3, 4, 8, 14, 16, 28])
def test_every_draw_gives_the_size_of_the_official_rules_or_at_least_one_patch(grid: int) -> None:
    for step in range(1000):
        for scale, ratio in ((OFFICIAL.target_scale, OFFICIAL.target_ratio), (OFFICIAL.context_scale, (1.0, 1.0))):
            expected = official_size(step / 1000, scale, ratio, grid)
            assert block_size(step / 1000, scale, ratio, grid) == (max(1, expected[0]), max(1, expected[1]))


def test_positions_of_20_000_targets_are_even_and_end_before_the_last_row_and_column() -> None:
    """``randint(0, height - h)`` leaves out its upper end."""
    height, width = drawn_sizes(AT, 14, OFFICIAL)[0]
    corners = draw_blocks(AT, 5000, 14, OFFICIAL).targets[:, :, 0]
    counts = Counter((int(corner) // 14, int(corner) % 14) for corner in corners.flatten())
    assert counts.keys() == {(top, left) for top in range(14 - height) for left in range(14 - width)}
    number = 20_000 / len(counts)
    chi = sum((count - number) ** 2 / number for count in counts.values())
    assert chi < len(counts) + 5 * math.sqrt(2 * len(counts))


def test_a_target_is_a_rectangle_and_the_context_a_block_without_the_targets_cut_to_the_shortest() -> None:
    blocks = draw_blocks(AT, 200, 14, OFFICIAL)
    (height, width), (rows, columns) = drawn_sizes(AT, 14, OFFICIAL)
    assert (rows, columns) == (13, 13)  # of 14: the context has one place
    contexts = []
    for targets in blocks.targets.tolist():
        for target in targets:
            top, left = divmod(target[0], 14)
            assert target == [14 * (top + y) + left + x for y in range(height) for x in range(width)]
        covered = {patch for target in targets for patch in target}
        contexts.append([14 * y + x for y in range(13) for x in range(13) if 14 * y + x not in covered])
    shortest = min(map(len, contexts))
    assert shortest > 10
    assert blocks.context.tolist() == [each[:shortest] for each in contexts]


def test_where_targets_leave_too_little_the_last_of_them_are_not_removed_from_the_context() -> None:
    """This context has one place: after every 20 tries one target fewer is removed, until enough is left."""
    rules = BlockRules(3, (0.3, 0.3), (1.0, 1.0), (0.9, 0.9), 60)
    assert (TRIES, rules.fewest(8), drawn_sizes(AT, 8, rules)) == (20, 19, ((4, 4), (7, 7)))
    blocks = draw_blocks(AT, 60, 8, rules)
    whole, left, removed = {8 * y + x for y in range(7) for x in range(7)}, [], set()
    for targets in blocks.targets.tolist():
        rest = {number: sorted(whole - {p for each in targets[:number] for p in each}) for number in (3, 2, 1)}
        number = next(each for each in rest if len(rest[each]) > 19)
        left.append(rest[number])
        removed.add(number)
    assert removed == {1, 2, 3}
    assert blocks.context.tolist() == [each[: min(map(len, left))] for each in left]


def test_four_processes_draw_the_blocks_of_one_and_cut_them_to_the_same_length(monkeypatch: pytest.MonkeyPatch) -> None:
    one = draw_blocks(AT, 8, 8, OFFICIAL)
    for processes in (2, 4):
        parts = []
        monkeypatch.setattr(distributed, "world_size", lambda processes=processes: processes)
        for rank in range(processes):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            parts.append(draw_blocks(AT, 8 // processes, 8, OFFICIAL))
        for whole, pieces in zip(one, zip(*parts, strict=True), strict=True):
            assert torch.equal(torch.cat(pieces), whole)


def test_blocks_follow_seed_and_batch_and_no_other_state() -> None:
    one = draw_blocks(AT, 8, 14, OFFICIAL)
    torch.rand(3)
    assert all(map(torch.equal, one, draw_blocks(AT._replace(total_steps=99), 8, 14, OFFICIAL)))
    for other in (AT._replace(step=6), AT._replace(seed=1), AT._replace(part=1, parts=2)):
        drawn = draw_blocks(other, 8, 14, OFFICIAL)
        assert drawn.targets.shape != one.targets.shape or not torch.equal(drawn.targets, one.targets)


# the order of a step


def test_the_teacher_follows_after_the_step_with_the_new_weights_along_a_line_and_gets_no_gradient() -> None:
    objective = make_objective()
    before = copy.deepcopy(objective.teacher_backbone)
    optimizer = torch.optim.SGD([each for each in objective.parameters() if each.requires_grad], lr=0.1)
    objective(make_batch(), AT).loss.backward()
    assert all(map(torch.equal, before.parameters(), objective.teacher_backbone.parameters()))
    optimizer.step()
    objective.after_step(AT)
    for old, new, trained in zip(
        before.parameters(), objective.teacher_backbone.parameters(), objective.backbone.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.925 * old + 0.075 * trained, rtol=0, atol=1e-15)  # a quarter of 0.9 to 1
    assert all(each.grad is None and not each.requires_grad for each in objective.teacher_backbone.parameters())
    assert objective.product() is objective.teacher_backbone
    plan = Plan(3, 1, 100, (16,))
    momenta = [objective.scheduled_values(Progress(step, 20, 5, 0), plan)["momentum"] for step in (0, 10, 19)]
    assert momenta == pytest.approx([0.9, 0.95, 0.995])


def test_the_teacher_leaves_out_no_paths() -> None:
    objective = make_objective(make_vit(drop_path=0.5))
    shares = [
        [module.drop_prob for module in network.modules() if hasattr(module, "drop_prob")]
        for network in (objective.backbone, objective.teacher_backbone)
    ]
    assert shares == [[0.5], [0.0]]


def test_the_spread_of_targets_tells_images_that_differ_from_ones_that_do_not() -> None:
    objective, batch = make_objective(), make_batch(8)
    same = batch._replace(views=(batch.views[0][:1].expand(8, -1, -1, -1),))
    found, alike = (float(objective(each, AT).metrics["target_std"]) for each in (batch, same))
    whole = normalised_tokens(objective.teacher_backbone.tokens(batch.views[0]))
    assert found == pytest.approx(float(whole.var(0, unbiased=False).mean().sqrt().detach()), rel=1e-5)
    assert alike == pytest.approx(0, abs=1e-3)
    [sign] = objective.metric_bounds(Plan(8, 1, 100, (16,)))
    assert alike < sign.at_least < found


# what cannot work


def test_all_that_is_wrong_with_a_network_is_said_in_one_line_with_all_to_give() -> None:
    keys = "backbone.class_token=false backbone.pooling=gap"
    with pytest.raises(UserError, match=rf"^objective=ijepa needs a ViT, which ResNet is not: .* with {keys}$"):
        make_objective(ResNet(10, 0.125, "cifar"))
    related: dict[str, Any] = {"position": "none", "relative_position": True}
    for vit, more in (
        (ViT(16, 2, 8, 1, 2), ""),
        (ViT(16, 2, 8, 1, 2, registers=1), " backbone.registers=0"),
        (ViT(16, 2, 8, 1, 2, **related), " backbone.relative_position=false backbone.position=sincos"),
        (ViT(16, 8, 8, 1, 2), r"; and objective\.context_scale=.* give a smaller backbone\.patch_size"),
    ):
        with pytest.raises(UserError, match=rf"^objective=ijepa: its encoder sees some patches .* give {keys}{more}"):
            make_objective(vit)


@pytest.mark.parametrize(
    ("changed", "patch"), [({}, 8), ({"context_scale": (0.02, 0.1)}, 2), ({"least_context": 200}, 2)]
)
def test_blocks_that_have_no_place_are_refused(changed: dict[str, Any], patch: int) -> None:
    vit = ViT(16, patch, 8, 1, 2, class_token=False, pooling="gap")
    with pytest.raises(UserError, match=r"^objective\.context_scale=.* patches give a context of"):
        make_objective(vit, **changed)


def test_two_views_and_a_predictor_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(UserError, match=r"^views: these make 2 of an image, the objective takes exactly 1"):
        make_objective().check(Plan(8, 1, 100, (16, 16)))
    with pytest.raises(UserError, match=r"^objective\.predictor_heads=5 does not divide objective\.predictor_width=12"):
        make_objective(predictor_heads=5)
