"""SimMIM against loops, a whole network written out by hand, the official rules of its masks, and its pictures."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.literal_vit import literal_blocks, literal_embedding, literal_norm
from tests.objectives.two_views import assert_bf16_within_a_hundredth, assert_same_loss_and_gradients, draw
from unlabeled import distributed
from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.vit import ViT
from unlabeled.errors import UserError
from unlabeled.objective import Batch, Plan, Progress
from unlabeled.objectives.simmim import SimMIM, hidden_units, simmim_loss, unit_masks

AT = Progress(5, 20, 5, 0)


def make_objective(backbone: Any = None, **changed: Any) -> SimMIM:
    torch.manual_seed(0)
    vit = ViT(16, 4, 8, 2, 2, position="none", relative_position=True, layer_scale=0.1, pooling="gap")
    return SimMIM(backbone or vit, **({"mask_unit": 2, "mask_ratio": 0.6} | changed)).double()


def make_batch(images: int = 3) -> Batch:
    ids = torch.arange(images)
    return Batch(torch.zeros(images, 3, 16, 16, dtype=torch.uint8), ids, ids, (draw(images, 3, 16, 16),))


# the loss


def literal_loss(prediction: Tensor, images: Tensor, mask: Tensor, p: int) -> Tensor:
    """arXiv:2111.09886, section 3.4, one pixel at a time."""
    total, count = prediction.new_zeros(()), 0
    batch, channels, height, width = images.shape
    for n in range(batch):
        for y in range(height):
            for x in range(width):
                if mask[n, y // p * (width // p) + x // p]:
                    count += 1
                    for c in range(channels):
                        total = total + (images[n, c, y, x] - prediction[n, c, y, x]).abs()
    return total / (count + 1e-5) / channels


@pytest.mark.parametrize(("height", "width", "p"), [(4, 4, 2), (4, 8, 2), (6, 3, 3)])
def test_the_loss_and_its_gradients_equal_a_loop_over_hidden_pixels(height: int, width: int, p: int) -> None:
    inputs = [draw(2, 3, height, width, seed=seed).requires_grad_() for seed in range(2)]
    mask = draw(2, height // p * (width // p), seed=2) > 0
    mask[:, 0] = torch.tensor([True, False])  # unequal numbers
    assert_same_loss_and_gradients(simmim_loss, literal_loss, inputs, mask, p)


def test_painting_0_costs_the_mean_absolute_value_of_hidden_pixels_and_nothing_of_the_others() -> None:
    images = 2 * torch.ones(2, 3, 4, 4, dtype=torch.float64)
    mask = torch.tensor([[True, False, False, False]]).expand(2, -1)
    assert float(simmim_loss(torch.zeros_like(images), images, mask, 2)) == pytest.approx(2, abs=1e-5)
    changed = images.clone()
    changed[:, :, :2, :2] = 0
    assert float(simmim_loss(torch.zeros_like(images), changed, mask, 2)) == 0


def test_in_bfloat16_the_loss_is_float32_and_within_one_per_cent() -> None:
    inputs = [draw(4, 3, 8, 8, seed=seed) for seed in range(2)]
    assert_bf16_within_a_hundredth(simmim_loss, inputs, draw(4, 16, seed=3) > 0, 2)


def test_a_mask_of_another_number_of_patches_is_refused() -> None:
    images = draw(2, 3, 8, 8)
    for size, patches in ((4, 5), (3, 4)):
        with pytest.raises(
            UserError, match=rf"^simmim_loss: mask \[2, {patches}\] has no place for each patch of {size}"
        ):
            simmim_loss(images, images, torch.ones(2, patches), size)


# masks: MaskGenerator of data/data_simmim.py


@pytest.mark.parametrize(
    ("units", "ratio", "hidden"), [(49, 0.6, 30), (36, 0.6, 22), (4, 0.6, 3), (10, 0.7, 7), (100, 0.6, 60), (9, 0.5, 5)]
)
def test_the_share_of_squares_is_rounded_up(units: int, ratio: float, hidden: int) -> None:
    assert hidden_units(units, ratio) == hidden


def test_in_20_000_masks_whole_squares_are_hidden_and_each_as_often_as_the_ratio_says() -> None:
    masks = unit_masks(AT, 20_000, 14, 2, 0.6).view(-1, 7, 2, 7, 2)
    units = masks[:, :, 0, :, 0]
    assert torch.equal(units[:, :, None, :, None].expand_as(masks), masks)
    assert set(units.flatten(1).sum(1).tolist()) == {30}
    share = 30 / 49
    spread = math.sqrt(share * (1 - share) / 20_000)
    assert float((units.double().mean(0) - share).abs().max()) < 5 * spread
    pairs = (units.flatten(1).double().T @ units.flatten(1).double() / 20_000)[~torch.eye(49, dtype=torch.bool)]
    together = 30 * 29 / (49 * 48)
    assert float((pairs - together).abs().max()) < 6 * math.sqrt(together * (1 - together) / 20_000)


def test_four_processes_hide_what_one_does_and_masks_follow_seed_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    one = unit_masks(AT, 8, 8, 2, 0.6)
    assert len({tuple(row) for row in one.tolist()}) > 1
    for other in (AT._replace(step=6), AT._replace(seed=1), AT._replace(part=1, parts=2)):
        assert not torch.equal(unit_masks(other, 8, 8, 2, 0.6), one)
    for processes in (2, 4):
        parts = []
        monkeypatch.setattr(distributed, "world_size", lambda processes=processes: processes)
        for rank in range(processes):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            parts.append(unit_masks(AT, 8 // processes, 8, 2, 0.6))
        assert torch.equal(torch.cat(parts), one)


# the network


def literal_painting(objective: SimMIM, image: Tensor, mask: Tensor) -> Tensor:
    """The painted image [3, 16, 16], from the tensors of network and decoder; a head's bias for a pair at a time."""
    state = dict(objective.backbone.named_parameters())
    patches = literal_embedding(image, state)
    patches = torch.stack(
        [objective.mask_token[0, 0] if hidden else row for row, hidden in zip(patches, mask, strict=True)]
    )
    x = torch.cat([state["cls_token"][0], patches])
    table = state["rel_pos_bias.relative_position_bias_table"]
    rows = [[pair_row(a, b, 4) for b in range(17)] for a in range(17)]
    bias = torch.stack([torch.stack([table[row] for row in line]) for line in rows]).permute(2, 0, 1)
    x = literal_norm(literal_blocks(x, state, "blocks", 2, bias), state, "norm")[1:]
    last = dict(objective.decoder.named_parameters())
    painted = x @ last["0.weight"].flatten(1).T + last["0.bias"]  # a patch's values: channel, row, column
    grid = [torch.cat([painted[4 * y + x].view(3, 4, 4) for x in range(4)], 2) for y in range(4)]
    return torch.cat(grid, 1)


def pair_row(a: int, b: int, grid: int) -> int:
    """The row of BEiT's table for a token that attends to another; 0 is the class token."""
    last = (2 * grid - 1) ** 2
    if a == 0 or b == 0:
        return last + 2 if a == b else last if a == 0 else last + 1
    (y, x), (v, u) = divmod(a - 1, grid), divmod(b - 1, grid)
    return (y - v + grid - 1) * (2 * grid - 1) + x - u + grid - 1


def test_loss_and_every_gradient_equal_a_network_written_out_by_hand() -> None:
    objective, batch = make_objective(), make_batch()
    for parameter in objective.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    output = objective(batch, AT)
    mask = unit_masks(AT, 3, 4, 2, 0.6)
    painted = [literal_painting(objective, *pair) for pair in zip(batch.views[0], mask, strict=True)]
    expected = literal_loss(torch.stack(painted), batch.views[0], mask, 4)
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=1e-11)
    trained = dict(objective.named_parameters())
    ours = torch.autograd.grad(output.loss, list(trained.values()))
    theirs = torch.autograd.grad(expected, list(trained.values()))
    for name, one, other in zip(trained, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11, msg=name)
    assert all(bool(gradient.any()) for gradient in ours)


def test_what_is_hidden_is_not_seen_and_the_sequence_is_whole() -> None:
    objective, batch = make_objective(), make_batch()
    lengths: list[int] = []
    objective.backbone.norm.register_forward_hook(lambda module, given, made: lengths.append(made.shape[1]))
    mask = unit_masks(AT, 3, 4, 2, 0.6)
    hidden = mask.view(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    changed = batch._replace(views=(batch.views[0] + 7 * hidden,))
    features = [objective(each, AT).features for each in (batch, changed)]
    assert torch.equal(*features)
    assert lengths == [17, 17]
    seen = batch._replace(views=(batch.views[0] + 7 * ~hidden,))
    assert not torch.equal(objective(seen, AT).features, features[0])


def test_frozen_blocks_keep_the_bias_that_all_blocks_share() -> None:
    vit = ViT(16, 4, 8, 2, 2, position="none", relative_position=True, pooling="gap", freeze=1)
    trained = {name for name, each in make_objective(vit).named_parameters() if each.requires_grad}
    assert {name.rpartition(".")[0] for name in trained if "blocks.1." not in name} == {
        "",
        "backbone.norm",
        "decoder.0",
    }
    assert "mask_token" in trained


def test_pictures_hold_the_image_where_it_was_seen_and_the_paint_where_it_was_not() -> None:
    objective, batch = make_objective(), make_batch()
    with torch.no_grad():
        pictures = objective.visualize(batch, seed=0)
    assert list(pictures) == ["seen", "reconstructed", "original"]
    mask = unit_masks(Progress(0, 1, 1, 0), 3, 4, 2, 0.6)
    hidden = mask.view(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    images = batch.views[0]
    assert torch.equal(pictures["original"], images)
    assert torch.equal(pictures["seen"], torch.where(hidden, images.mean(), images))
    painted = torch.stack([literal_painting(objective, *pair) for pair in zip(images, mask, strict=True)])
    torch.testing.assert_close(pictures["reconstructed"], torch.where(hidden, painted, images))


# what cannot work


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask_unit": 3}, r"^objective\.mask_unit=3 does not divide the 4 patches along a side"),
        ({"mask_unit": 4}, r"^objective\.mask_ratio=0\.6 of 1 squares of objective\.mask_unit=4 patches: some must be"),
        ({"mask_ratio": 0.0}, r"^objective\.mask_ratio=0\.0 of 4 squares"),
        ({"backbone": ResNet(10, 0.125, "cifar")}, r"^objective=simmim needs a ViT, which ResNet is not"),
    ],
)
def test_masks_that_hide_nothing_or_all_and_other_networks_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_objective(**changed)


def test_two_views_are_refused_and_there_is_no_loss_at_collapse() -> None:
    with pytest.raises(UserError, match=r"^views: these make 2 of an image, the objective takes exactly 1"):
        make_objective().check(Plan(8, 1, 100, (16, 16)))
    assert make_objective().collapsed_at(Plan(8, 1, 100, (16,))) is None
