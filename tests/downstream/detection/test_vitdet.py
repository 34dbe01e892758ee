"""ViTDet against a transcription of the paper in loops, from pretrained weights, and at the sizes of its recipes."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.backbones.vit import ViT
from unlabeled.downstream.detection.model import Inputs, detector
from unlabeled.downstream.detection.networks.heads import Heads
from unlabeled.downstream.detection.networks.vitdet import ViTDet
from unlabeled.errors import UserError
from unlabeled.optimizers.layer_decay import by_layer
from unlabeled.weights.load import load_backbone

PATCH, DEPTH, HEADS, WIDTH = 4, 8, 2, 16


def plain(**more: Any) -> ViT:
    torch.manual_seed(0)
    return ViT(32, PATCH, WIDTH, DEPTH, HEADS, position="learned", **more)


def with_random_weights(network: nn.Module) -> nn.Module:
    """Every tensor other than 0 and 1, as many are at the start."""
    draw = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.3, generator=draw)
    return network.double().eval()


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    """Over the last dimension, LayerNorm's formula."""
    centred = x - x.mean(-1, keepdim=True)
    scaled: Tensor = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    shifted: Tensor = norm.bias + scaled * norm.weight
    return shifted


def channel_norm(x: Tensor, norm: Any) -> Tensor:
    return layer_norm(x.movedim(0, -1), norm).movedim(-1, 0)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def table_for(table: Tensor, length: int) -> Tensor:
    """Positions −(length − 1) … length − 1, between those of the table by the line through its neighbours."""
    places = [(i + 0.5) * len(table) / (2 * length - 1) - 0.5 for i in range(2 * length - 1)]
    places = [min(max(place, 0.0), len(table) - 1.0) for place in places]
    rows = [(table[int(p)], table[min(int(p) + 1, len(table) - 1)], p - int(p)) for p in places]
    return torch.stack([low + (high - low) * share for low, high, share in rows])


def attention(x: Tensor, layer: Any) -> Tensor:
    """All of x [h, w, D] attends to all of it: q·k / √d + q·r_row + q·r_column for each pair, head by head."""
    h, w, _ = x.shape
    d = WIDTH // HEADS
    qkv = (x.reshape(h * w, -1) @ layer.qkv.weight.T + layer.qkv.bias).view(h * w, 3, HEADS, d)
    rows, columns = table_for(layer.rel_pos_h, h), table_for(layer.rel_pos_w, w)
    found = []
    for head in range(HEADS):
        q, k, v = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
        logits = q @ k.T / math.sqrt(d)
        for a in range(h):
            for b in range(h):
                logits[a * w : (a + 1) * w, b * w : (b + 1) * w] += (q[a * w : (a + 1) * w] @ rows[a - b + h - 1])[
                    :, None
                ]
        for a in range(w):
            for b in range(w):
                logits[a::w, b::w] += (q[a::w] @ columns[a - b + w - 1])[:, None]
        found.append(logits.softmax(1) @ v)
    mixed: Tensor = torch.cat(found, 1) @ layer.proj.weight.T + layer.proj.bias
    return mixed.view(h, w, -1)


def window_attention(x: Tensor, layer: Any) -> Tensor:
    h, w, width = x.shape
    padded = torch.zeros(math.ceil(h / 14) * 14, math.ceil(w / 14) * 14, width, dtype=x.dtype)
    padded[:h, :w] = x
    found = torch.zeros_like(padded)
    for top in range(0, len(padded), 14):
        for left in range(0, padded.shape[1], 14):
            part = slice(top, top + 14), slice(left, left + 14)
            found[part] = attention(padded[part], layer)
    return found[:h, :w]


def trunk(image: Tensor, network: Any, whole: set[int]) -> Tensor:
    """What the last block makes of an image [3, H, W]: [D, h, w]."""
    h, w = (side // PATCH for side in image.shape[1:])
    x = torch.zeros(h, w, WIDTH, dtype=image.dtype)
    projection = network.patch_embed.proj
    plane = network.pos_embed[0].view(8, 8, WIDTH).permute(2, 0, 1)[None]
    position = F.interpolate(plane, (h, w), mode="bicubic", align_corners=False)[0]
    for row in range(h):
        for column in range(w):
            patch = image[:, PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)]
            x[row, column] = projection.weight.flatten(1) @ patch.flatten() + projection.bias + position[:, row, column]
    for number, block in enumerate(network.blocks):
        attend = attention if number in whole else window_attention
        x = x + attend(layer_norm(x, block.norm1), block.attn)
        hidden = gelu(layer_norm(x, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
        x = x + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
    return x.permute(2, 0, 1)


def deconvolution(x: Tensor, layer: Any) -> Tensor:
    """Each cell becomes 2 × 2 cells."""
    found = torch.zeros(layer.weight.shape[1], 2 * x.shape[1], 2 * x.shape[2], dtype=x.dtype)
    for a in (0, 1):
        for b in (0, 1):
            found[:, a::2, b::2] = torch.einsum("ihw,io->ohw", x, layer.weight[:, :, a, b])
    shifted: Tensor = found + layer.bias[:, None, None]
    return shifted


def lateral(x: Tensor, parts: Any) -> Tensor:
    first, norm, second, last = parts
    x = channel_norm(torch.einsum("oi,ihw->ohw", first.weight[:, :, 0, 0], x), norm)
    padded = F.pad(x, (1, 1, 1, 1))
    h, w = x.shape[1:]
    x = sum(
        (
            torch.einsum("oi,ihw->ohw", second.weight[:, :, a, b], padded[:, a : a + h, b : b + w])
            for a in range(3)
            for b in range(3)
        ),
        torch.zeros(1, dtype=x.dtype),
    )
    return channel_norm(x, last)


def pyramid(x: Tensor, network: Any) -> dict[str, Tensor]:
    p2, p3, p4, p5 = network.p2, network.p3, network.p4, network.p5
    twice = deconvolution(gelu(channel_norm(deconvolution(x, p2[0]), p2[1])), p2[3])
    halved = torch.stack([x[:, a::2, b::2] for a in (0, 1) for b in (0, 1)]).amax(0)
    made = {"p2": lateral(twice, p2[4:]), "p3": lateral(deconvolution(x, p3[0]), p3[1:])}
    made |= {"p4": lateral(x, p4), "p5": lateral(halved, p5[1:])}
    return made | {"p6": made["p5"][:, ::2, ::2]}


def test_forward_equals_the_paper_in_loops_with_padded_windows_on_a_map_that_is_not_square() -> None:
    network: Any = with_random_weights(ViTDet(plain(), 8, image_size=64, drop_path=0.1))
    images = torch.rand(2, 3, 64, 72, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = network(images)
        for row, image in enumerate(images):
            x = trunk(image, network, {1, 3, 5, 7})  # 8 blocks: the last of each quarter
            for name, wanted in pyramid(x, network.pyramid).items():
                assert (found[name][row] - wanted).abs().max() < 1e-6 * wanted.abs().max(), name
    assert found["p6"].shape == (2, 8, 4, 5)  # of p5's 8 × 9 cells


def test_it_starts_without_relative_positions_and_both_tables_of_every_block_learn() -> None:
    vit = plain()
    network = ViTDet(vit, 8, 64, 0.0)
    tables = {name: each for name, each in network.named_parameters() if "rel_pos" in name}
    assert len(tables) == 2 * DEPTH
    assert all(not each.any() for each in tables.values())
    shapes = {name: tuple(each.shape) for name, each in tables.items()}
    assert shapes["blocks.0.attn.rel_pos_h"] == (27, 8)  # 2 · 14 − 1
    assert shapes["blocks.1.attn.rel_pos_w"] == (31, 8)  # 2 · 16 − 1: 64 pixels in patches of 4
    network(torch.rand(1, 3, 64, 64))["p4"].square().sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in tables.values())


def test_without_windows_positions_or_class_token_it_is_the_vit_itself() -> None:
    """At its own size, and with windows as large as the image, the blocks see what they were pretrained on."""
    vit = plain(class_token=False, pooling="gap").eval()
    images = torch.rand(2, 3, 32, 32)  # 8 × 8 patches
    with torch.no_grad():
        wanted = vit.block_outputs(images)[-1].transpose(1, 2).reshape(2, WIDTH, 8, 8)
        network = ViTDet(vit, 8, 32, 0.0).eval()
        for block in network.blocks:
            block.attn.window = None  # type: ignore[union-attr]
            for table in (block.attn.rel_pos_h, block.attn.rel_pos_w):  # type: ignore[union-attr]
                assert not table.any()  # type: ignore[operator]
        assert torch.allclose(network.trunk(images), wanted, atol=1e-5)


@pytest.mark.parametrize("size", [(224, 224), (512, 512), (1024, 1024), (512, 768), (800, 1344)])
def test_a_vit_of_any_image_size_has_maps_of_strides_4_to_64(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        network = ViTDet(ViT(224, 16, 32, 12, 2), 16, 1024, 0.1)
        found = network(torch.rand(2, 3, *size))
    for level, (name, made) in enumerate(found.items(), 2):
        assert name == f"p{level}"
        assert made.shape == (2, 16, *(math.ceil(side / 2**level) for side in size))
    assert [number for number, block in enumerate(network.blocks) if block.attn.window is None] == [2, 5, 8, 11]  # type: ignore[union-attr]


def test_the_official_weights_of_mae_load_with_nothing_left_and_reach_every_block(tmp_path: Path) -> None:
    source = ViT(32, 4, WIDTH, 4, HEADS)  # names as facebookresearch/mae has them
    decoder = {"mask_token": torch.rand(1, 1, 8), "decoder_embed.weight": torch.rand(8, WIDTH)}
    torch.save({"model": source.state_dict() | decoder}, tmp_path / "mae.pth")
    network = load_backbone(tmp_path / "mae.pth", ViT(32, 4, WIDTH, 4, HEADS))
    made = ViTDet(network, 8, 64, 0.1)
    found = made.state_dict()
    wanted = source.state_dict()
    assert torch.equal(found.pop("pos_embed"), wanted.pop("pos_embed")[:, 1:])
    for name in ("cls_token", "norm.weight", "norm.bias"):
        del wanted[name]  # ViTDet has none
    kept = {name for name in found if "rel_pos" not in name and not name.startswith("pyramid.")}
    assert kept == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in kept)


def test_rates_fall_from_block_to_block_and_the_pyramid_and_the_heads_have_the_full_one() -> None:
    made = detector(plain(), neck="vitdet", classes=2, masks=True, inputs=Inputs((64,), 64), heads=THIN)
    names = {parameter: name for name, parameter in made.named_parameters()}
    scales: dict[str, float] = {}
    for group in by_layer([{"params": list(made.parameters())}], made, 0.5):
        scales |= {names[parameter]: group["lr_scale"] for parameter in group["params"]}
    assert scales["backbone.pos_embed"] == scales["backbone.patch_embed.proj.weight"] == 0.5**9
    assert scales["backbone.blocks.0.attn.rel_pos_h"] == 0.5**8
    assert scales["backbone.blocks.7.mlp.fc1.weight"] == 0.5
    assert scales["backbone.pyramid.p4.0.weight"] == scales["rpn.head.conv.0.0.weight"] == 1
    assert scales["roi_heads.mask_head.0.0.weight"] == 1


THIN = Heads(16, 32, "layer", 4, 2, proposals=50, regions=32)


@pytest.mark.parametrize("square", [64, None])
def test_a_detector_on_a_vit_trains_all_that_it_has_and_finds_boxes_and_masks(square: int | None) -> None:
    made: Any = detector(
        plain(), neck="vitdet", classes=2, masks=True, inputs=Inputs((32,), 64, square=square), heads=THIN
    )
    images = [torch.rand(3, 40, 64), torch.rand(3, 32, 32)]
    masks = torch.zeros(2, 40, 64, dtype=torch.uint8)
    masks[:, 5:30, 5:40] = 1
    box = torch.tensor([[5.0, 5.0, 40.0, 30.0]])
    targets = [{"boxes": box, "labels": torch.tensor([1]), "masks": masks[:1]}]
    targets.append({"boxes": box[:, :] / 2, "labels": torch.tensor([2]), "masks": masks[:1, :32, :32]})
    torch.autograd.backward([*made.train()(images, targets).values()])
    assert [name for name, each in made.named_parameters() if each.grad is None] == []
    with torch.no_grad():
        found = made.eval()(images)
    assert [each["masks"].shape[1:] for each in found] == [(1, 40, 64), (1, 32, 32)]
    heads = made.roi_heads.box_head
    assert sum(isinstance(each, nn.Conv2d) for each in heads.modules()) == 4
    assert sum(isinstance(each, nn.Linear) for each in heads.modules()) == 1


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"depth": 2}, "neck=vitdet: backbone.depth=2: 4 blocks attend to the whole image"),
        ({"position": "none", "relative_position": True}, "neck=vitdet: backbone.relative_position=true"),
    ],
)
def test_a_vit_that_cannot_be_it_is_refused_in_a_line(backbone: dict[str, Any], message: str) -> None:
    given = {"image_size": 32, "patch_size": 4, "width": 16, "depth": 4, "heads": 2, **backbone}
    with pytest.raises(UserError) as error:
        detector(ViT(**given), neck="vitdet", classes=2, masks=False)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"neck": "fpn", "drop_path": 0.1}, "drop_path=0.1 is for neck=vitdet"),
        ({"neck": "vitdet", "batchnorm": "frozen"}, "batchnorm=frozen: a ViT has no BatchNorm"),
        ({"neck": "c4", "heads": THIN}, "neck=c4: the last stage is the head"),
        ({"neck": "vitdet", "inputs": Inputs(square=44)}, "size=44: with this backbone it must be a multiple of 8"),
        ({"neck": "other"}, "neck=other is not one of vitdet, fpn, c4"),
    ],
)
def test_a_setting_that_a_neck_would_ignore_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        detector(plain(), classes=2, masks=False, **given)
    assert str(error.value).startswith(message)
