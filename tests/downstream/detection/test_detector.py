"""A detector on convolutional networks: torchvision's own where it has it, and each part that is not torchvision's."""

from collections import OrderedDict
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import roi_align

from unlabeled.backbones.regnet import RegNetY
from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.timm import TimmBackbone
from unlabeled.backbones.vit import ViT
from unlabeled.backbones.wide_resnet import WideResNet
from unlabeled.downstream.detection.annotated import jitter
from unlabeled.downstream.detection.annotated.jitter import Jitter
from unlabeled.downstream.detection.model import Inputs, Preparation, detector
from unlabeled.downstream.detection.networks.heads import Anchors, Heads, region_pool
from unlabeled.downstream.detection.networks.stages import stage_levels
from unlabeled.errors import UserError
from unlabeled.objective import Backbone

THIN = Heads(width=16, hidden=32, proposals=50, regions=32)
SMALL = Inputs((64,), 96)


def scene() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two images, the second without an object."""
    draw = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 64, 96, generator=draw), torch.rand(3, 64, 64, generator=draw)]
    box = torch.tensor([[8.0, 8.0, 40.0, 50.0]])
    masks = torch.zeros(1, 64, 96, dtype=torch.uint8)
    masks[:, 8:50, 8:40] = 1
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return images, [
        {"boxes": box, "labels": torch.tensor([2]), "masks": masks},
        nothing | {"masks": torch.zeros(0, 64, 64, dtype=torch.uint8)},
    ]


def thin(neck: Any = "fpn", **more: Any) -> Any:
    torch.manual_seed(1)
    given = {"classes": 3, "masks": True, "inputs": SMALL, "heads": THIN, **more}
    return detector(ResNet(10, 0.25, "imagenet"), neck=neck, **given)


def descend(losses: dict[str, Tensor]) -> None:
    torch.autograd.backward([*losses.values()])


def test_on_a_resnet_it_has_the_tensors_losses_and_detections_of_torchvisions_mask_r_cnn() -> None:
    layers = {f"layer{stage}": str(stage - 1) for stage in (1, 2, 3, 4)}
    torch.manual_seed(0)
    theirs = MaskRCNN(
        BackboneWithFPN(ResNet(10, 0.25, "imagenet"), layers, [16, 32, 64, 128], 16),
        min_size=64,
        max_size=96,
        rpn_post_nms_top_n_train=50,
        box_batch_size_per_image=32,
        box_head=TwoMLPHead(16 * 7 * 7, 32),
        box_predictor=FastRCNNPredictor(32, 4),
        mask_head=MaskRCNNHeads(16, [16] * 4, 1),
        mask_predictor=MaskRCNNPredictor(16, 16, 4),
    )
    ours = thin()
    ours.load_state_dict(theirs.state_dict())
    images, targets = scene()
    losses = []
    for each in (theirs, ours):
        torch.manual_seed(2)
        losses.append(each.train()(images, targets))
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        assert losses[1][name].item() == pytest.approx(value.item(), rel=1e-5)
    with torch.no_grad():
        found = [each.eval()(images) for each in (theirs, ours)]
    for wanted, got in zip(*found, strict=True):
        assert len(wanted["boxes"]) > 10
        for key in ("boxes", "labels", "scores", "masks"):
            assert torch.allclose(got[key], wanted[key], rtol=1e-4, atol=1e-4), key


@pytest.mark.parametrize(("neck", "norm"), [("fpn", "none"), ("fpn", "batch"), ("c4", "batch")])
def test_every_parameter_learns_and_an_image_without_an_object_has_a_loss(neck: str, norm: Any) -> None:
    made, (images, targets) = thin(neck, heads=Heads(16, 32, norm, proposals=50, regions=32)), scene()
    descend(made.train()(images, targets))
    assert [name for name, each in made.named_parameters() if each.grad is None] == []
    alone = made(images[1:], targets[1:])
    assert alone["loss_box_reg"] == alone["loss_mask"] == alone["loss_rpn_box_reg"] == 0
    assert 0 < alone["loss_classifier"] < 10


def test_the_box_head_of_c4_is_the_fourth_stage_of_regions_of_14_cells_and_the_mask_head_is_the_same() -> None:
    made = thin("c4").eval()
    regions: list[Tensor] = []
    made.roi_heads.box_head.register_forward_pre_hook(lambda module, given: regions.append(given[0]))
    images, _ = scene()
    with torch.no_grad():
        made(images[:1])
        network = ResNet(10, 0.25, "imagenet").eval()
        stages = made.backbone.body.state_dict()
        last = {f"layer4.{k}": v for k, v in made.roi_heads.box_head.last.stage.state_dict().items()}
        network.load_state_dict(stages | last)
        wanted = network.layer4(regions[0])
        assert torch.equal(made.roi_heads.box_head(regions[0]), wanted.mean((2, 3)))
        assert torch.equal(made.roi_heads.mask_head(regions[0]), wanted)
    assert regions[0].shape[1:] == (64, 14, 14)
    assert wanted.shape[1:] == (128, 7, 7)
    assert sum("stage.0.conv1" in name for name in made.state_dict()) == 1


@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_frozen_batchnorms_stay_what_they_were_and_trained_ones_do_not(neck: str) -> None:
    images, targets = scene()
    for kind, same in (("frozen", True), ("trained", False)):
        made = thin(neck, batchnorm=kind)
        norms = [each for each in made.modules() if isinstance(each, nn.BatchNorm2d)]
        before = [cast(Tensor, each.running_mean).clone() for each in norms]
        descend(made.train()(images, targets))
        kept = [torch.equal(was, cast(Tensor, each.running_mean)) for was, each in zip(before, norms, strict=True)]
        assert set(kept) == {same}
        assert {each.weight.grad is None for each in norms} == {same}


def test_anchors_lie_at_the_strides_of_their_levels_where_torchvisions_would_not() -> None:
    images = ImageList(torch.zeros(1, 3, 96, 160), [(96, 160)])
    maps = [
        torch.zeros(1, 1, *cells) for cells in ((3, 5), (2, 3))
    ]  # strides 32 and 64: 96 / 2 and 160 / 3 are neither
    (found,) = Anchors([32, 64], Heads())(images, maps)
    centres = (found[:, :2] + found[:, 2:]) / 2
    assert centres[0].tolist() == [0, 0]
    assert centres[-1].tolist() == [128, 64]
    sides = (found[:, 2:] - found[:, :2]).prod(1).sqrt()
    assert sides[0] == pytest.approx(256, rel=0.01)
    assert sides[-1] == pytest.approx(512, rel=0.01)


def test_regions_are_cut_at_the_true_scale_from_the_level_of_their_size() -> None:
    strides = {"a": 4, "b": 8, "c": 16, "d": 32}
    draw = torch.Generator().manual_seed(0)
    maps = OrderedDict((name, torch.rand(1, 2, 512 // s, 512 // s, generator=draw)) for name, s in strides.items())
    boxes = torch.tensor([[0.0, 0, 111, 111], [0, 0, 112, 112], [8, 0, 232, 224], [8, 0, 500, 450], [3, 5, 20, 22]])
    # torchvision divides by the sizes before padding: here it would take 1 for the scale of the first map
    found = region_pool(strides, 7)(maps, [boxes], [(140, 140)])
    for row, name in enumerate("abcda"):
        wanted = roi_align(maps[name], [boxes[row : row + 1]], 7, 1 / strides[name], 2)
        assert torch.equal(found[row : row + 1], wanted)


def test_boxes_are_exact_under_autocast_to_bfloat16() -> None:
    made, (images, _) = thin().eval(), scene()
    seen: list[Tensor] = []
    made.rpn.anchor_generator.register_forward_hook(lambda module, given, output: seen.append(output[0]))
    with torch.no_grad():
        made(images)
        with torch.autocast("cpu", torch.bfloat16):
            found = made(images)
    assert torch.equal(*seen)
    assert all(each[key].dtype == torch.float32 for each in found for key in ("boxes", "scores"))


def test_images_are_normalised_and_padded_with_zeros_to_the_square_that_is_asked_for() -> None:
    given = Inputs((32,), 64, resize_training=False, square=128, mean=(0.5,) * 3, std=(0.25,) * 3)
    batch, _ = thin(inputs=given).train().transform([torch.ones(3, 40, 50), torch.ones(3, 33, 20)])
    assert batch.tensors.shape == (2, 3, 128, 128)
    assert batch.image_sizes == [(40, 50), (33, 20)]
    assert torch.equal(batch.tensors[0, :, :40, :50], torch.full((3, 40, 50), 2.0))
    assert batch.tensors.count_nonzero() == 3 * (40 * 50 + 33 * 20)


@pytest.mark.parametrize(
    ("backbone", "strides"),
    [
        (ResNet(10, 0.25, "cifar"), [1, 2, 4, 8]),
        (RegNetY(4, 16, 27.89, 2.65, 8), [4, 8, 16]),
        (WideResNet(10, 1, 0.1, 0.1), [1, 2, 4]),
        (TimmBackbone("test_convnext"), [4, 8, 16, 32]),
    ],
)
def test_a_pyramid_takes_the_last_map_of_each_stride(backbone: Backbone, strides: list[int]) -> None:
    training = backbone.train().training
    levels = stage_levels(backbone)
    maps = backbone.stage_maps(torch.rand(1, 3, 64, 96))
    assert [level.stride for level in levels] == strides
    for level in levels:
        assert maps[level.place].shape[1:] == (level.channels, 64 // level.stride, 96 // level.stride)
    assert all(module.training == training for module in backbone.modules())


@pytest.mark.parametrize(
    ("backbone", "neck", "message"),
    [
        (ViT(16, 4, 16, 2, 2), "fpn", "neck=fpn: ViT has no stages of falling resolution: give a ResNet"),
        (RegNetY(4, 16, 27.89, 2.65, 8), "c4", "neck=c4: RegNetY is no ResNet"),
        (TimmBackbone("test_vit"), "fpn", "neck=fpn: all maps of TimmBackbone have one resolution"),
    ],
)
def test_a_backbone_that_cannot_do_it_is_refused_in_a_line(backbone: Backbone, neck: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        detector(backbone, neck=neck, classes=2, masks=False)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_evaluation_shrinks_images_as_training_does_so_that_fine_stripes_stay_grey() -> None:
    stripes = torch.zeros(3, 512, 512)
    stripes[:, :, 3::4] = 1.0
    draw = Jitter(0, None, (128,), 128, False, (0.0,) * 3)
    trained, _ = draw((stripes, {"boxes": torch.zeros(0, 4)}), torch.Generator())
    prepared = Preparation(Inputs((128,), 128, mean=(0.0,) * 3, std=(1.0,) * 3), 32).eval()
    seen, _ = prepared([stripes])
    torch.testing.assert_close(seen.tensors[0], trained)
    assert float(trained.mean()) == pytest.approx(0.25, abs=0.01)


def test_images_and_objects_are_resized_where_they_lie_and_no_tensor_of_the_host_meets_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Meta tensors stand for a GPU's: with one of the host they are as wrong."""
    monkeypatch.setattr(jitter, "what_is_left", lambda target, height, width: target)  # reads values
    prepared = Preparation(Inputs((32,), 64), 32).eval()
    target = {"boxes": torch.empty(2, 4, device="meta"), "masks": torch.empty(2, 50, 60, device="meta")}
    seen, changed = prepared.resize(torch.empty(3, 50, 60, device="meta"), target)
    assert seen.shape == (3, 32, 38)
    assert changed is not None
    assert changed["boxes"].device.type == "meta"
    assert jitter.boxes_of(torch.ones(1, 4, 5)).tolist() == [[0, 0, 5, 4]]
