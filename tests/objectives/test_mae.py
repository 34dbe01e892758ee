"""MAE against literal loops, a whole network written out by hand, the official layout, and itself on two processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.forked import spawn
from tests.group import leave
from tests.objectives.literal_vit import literal_block, literal_norm
from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.timm import TimmBackbone
from unlabeled.backbones.vit import ViT
from unlabeled.errors import UserError
from unlabeled.objective import Backbone, Batch, Plan, Progress
from unlabeled.objectives.mae import (
    MAE,
    MaskedAutoencoder,
    masked_patch_loss,
    masking_noise,
    patchify,
    random_masking,
    unpatchify,
)
from unlabeled.objectives.parts.arguments import VITS

PLAN = Plan(8, 1, 100, (16,))

CONF = Path(__file__).parents[2] / "conf"
START = Progress(0, 10, 10, 0)


@pytest.fixture(autouse=True)
def _seed() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# patches and masks


def literal_patches(images: Tensor, p: int) -> list[list[list[Tensor]]]:
    """Values of each patch of each image: patches row by row, inside one row by row, the three colours together."""
    height, width = images.shape[2:]
    return [
        [
            [image[c, top + y, left + x] for y in range(p) for x in range(p) for c in range(3)]
            for top in range(0, height, p)
            for left in range(0, width, p)
        ]
        for image in images
    ]


@pytest.mark.parametrize(("height", "width", "p"), [(4, 4, 2), (6, 6, 3), (4, 8, 2), (6, 2, 1)])
def test_patches_equal_a_literal_loop(height: int, width: int, p: int) -> None:
    images = torch.randn(2, 3, height, width)
    assert torch.equal(patchify(images, p), torch.tensor(literal_patches(images, p)))


@pytest.mark.parametrize(("size", "p"), [(4, 2), (12, 3), (32, 4), (28, 14)])
def test_patches_can_be_put_together_again(size: int, p: int) -> None:
    images = torch.randn(2, 3, size, size).contiguous(memory_format=torch.channels_last)
    assert torch.equal(unpatchify(patchify(images, p), p), images)


COUNTS = [
    (196, 0.75, 49),
    (256, 0.75, 64),
    (64, 0.75, 16),
    (36, 0.75, 9),
    (196, 0.6, 78),  # 78.4
    (10, 0.75, 2),  # 2.5
    (100, 0.9, 10),  # the official int(100 * (1 - 0.9)) is 9
    (400, 0.9, 40),  # 39
    (10, 0.9, 1),  # 0
    (4, 0.9, 1),  # 0.4, and no image may be left without a patch
    (9, 0.5, 4),
    (16, 0.25, 12),
]


@pytest.mark.parametrize(("patches", "ratio", "kept"), COUNTS)
def test_as_many_patches_as_the_ratio_leaves_are_kept_and_never_none(patches: int, ratio: float, kept: int) -> None:
    ids_keep, mask, _ = random_masking(torch.rand(3, patches), ratio)
    assert ids_keep.shape == (3, kept)
    assert mask.sum(1).tolist() == [patches - kept] * 3


def test_the_patches_of_smallest_noise_are_kept_in_its_order_and_restore_undoes_it() -> None:
    noise = torch.rand(5, 20)
    ids_keep, mask, ids_restore = random_masking(noise, 0.7)
    for row in range(5):
        ranked = sorted(range(20), key=lambda patch: float(noise[row, patch]))
        assert ids_keep[row].tolist() == ranked[:6]
        assert [ranked[place] for place in ids_restore[row].tolist()] == list(range(20))
        assert [patch for patch in range(20) if mask[row, patch] == 0] == sorted(ranked[:6])
    assert set(mask.flatten().tolist()) == {0.0, 1.0}


# the loss


def literal_loss(prediction: Tensor, images: Tensor, mask: Tensor, p: int, normalise: bool) -> Tensor:
    """arXiv:2111.06377, section 3, in the order of the official forward_loss, a removed patch at a time."""
    errors = []
    for i, patches in enumerate(literal_patches(images, p)):
        for j, values in enumerate(patches):
            if mask[i, j] == 0:
                continue
            if normalise:
                mean = sum(values) / len(values)
                variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
                values = [(value - mean) / (variance + 1e-6) ** 0.5 for value in values]
            errors.append(sum((ours - value) ** 2 for ours, value in zip(prediction[i, j], values, strict=True)))
    return torch.stack([torch.as_tensor(error) for error in errors]).sum() / (len(errors) * p * p * 3)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("size", "p", "ratio"), [(4, 2, 0.5), (6, 2, 0.75), (6, 3, 0.5)])
def test_the_loss_and_its_gradients_equal_a_literal_loop(size: int, p: int, ratio: float, normalise: bool) -> None:
    patches = (size // p) ** 2
    images = torch.randn(2, 3, size, size, dtype=torch.float64, requires_grad=True)
    prediction = torch.randn(2, patches, p * p * 3, dtype=torch.float64, requires_grad=True)
    mask = random_masking(torch.rand(2, patches), ratio)[1]
    mask[0, 0], mask[1, 0] = 0, 1  # unequal numbers of removed patches too
    loss = masked_patch_loss(prediction, images, mask, p, normalise)
    expected = literal_loss(prediction, images, mask, p, normalise)
    assert loss.dtype == torch.float64
    assert abs(float(loss) - float(expected)) < 1e-12
    ours = torch.autograd.grad(loss, [prediction, images])
    for gradient, theirs in zip(ours, torch.autograd.grad(expected, [prediction, images]), strict=True):
        torch.testing.assert_close(gradient, theirs, rtol=0, atol=1e-12)
    assert int(ours[0][mask == 0].count_nonzero()) == 0


@pytest.mark.parametrize("p", [2, 4, 16])
def test_painting_every_patch_in_its_mean_costs_the_value_at_collapse(p: int) -> None:
    images = torch.rand(2, 3, 4 * p, 4 * p, dtype=torch.float64)
    objective = make_objective(ViT(4 * p, p, 8, 1, 2))
    nothing = torch.zeros(2, 16, p * p * 3, dtype=torch.float64)
    loss = masked_patch_loss(nothing, images, torch.ones(2, 16), p, True)
    assert float(loss) == pytest.approx(1 - 1 / (3 * p * p), abs=1e-3)  # 1e-6 under the root
    assert objective.collapsed_at(PLAN) == 1 - 1 / (3 * p * p)
    objective.normalize_targets = False
    assert objective.collapsed_at(PLAN) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_16_bit_predictions_is_float32_and_that_of_float32(dtype: torch.dtype) -> None:
    images, mask = torch.randn(4, 3, 8, 8), random_masking(torch.rand(4, 4), 0.5)[1]
    prediction = (300 * torch.randn(4, 4, 48)).to(dtype)  # squares overflow in float16
    with torch.autocast("cpu", dtype=dtype):
        loss = masked_patch_loss(prediction, images, mask, 4, True)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(masked_patch_loss(prediction.float(), images, mask, 4, True)), rel=1e-6)


# the network


def literal_prediction(
    image: Tensor, noise: Tensor, kept: int, state: dict[str, Tensor], heads: tuple[int, int]
) -> Tensor:
    """MAE's forward pass for one image [3, H, W] from the official state_dict, patches in their own places."""
    p = state["patch_embed.proj.weight"].shape[-1]
    weight = state["patch_embed.proj.weight"].permute(0, 2, 3, 1).flatten(1)  # colours together, as in a patch
    patches = torch.stack([torch.stack(values) for values in literal_patches(image[None], p)[0]])
    embedded = patches @ weight.T + state["patch_embed.proj.bias"] + state["pos_embed"][0, 1:]
    seen = sorted(noise.argsort()[:kept].tolist())  # blocks do not care about the order
    x = torch.cat([state["cls_token"][0] + state["pos_embed"][0, :1], embedded[seen]])
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    for number in range(depth):
        x = literal_block(x, state, f"blocks.{number}", heads[0])
    x = literal_norm(x, state, "norm") @ state["decoder_embed.weight"].T + state["decoder_embed.bias"]
    places = state["mask_token"][0].repeat(len(patches), 1)
    for token, patch in zip(x[1:], seen, strict=True):
        places = torch.cat([places[:patch], token[None], places[patch + 1 :]])
    x = torch.cat([x[:1], places]) + state["decoder_pos_embed"][0]
    depth = len({key.split(".")[1] for key in state if key.startswith("decoder_blocks.")})
    for number in range(depth):
        x = literal_block(x, state, f"decoder_blocks.{number}", heads[1])
    x = literal_norm(x, state, "decoder_norm") @ state["decoder_pred.weight"].T + state["decoder_pred.bias"]
    return x[1:]


@pytest.mark.parametrize("normalise", [False, True])
def test_loss_prediction_and_every_gradient_equal_a_network_written_out_by_hand(normalise: bool) -> None:
    network = MaskedAutoencoder(8, 2, 16, 2, 4, 12, 1, 3, normalise).double()
    for parameter in network.parameters():  # biases and norms that are not those of a fresh network
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    noise = torch.rand(3, 16)
    loss, prediction, mask = network.forward_masked(images, noise, 0.75)
    state = {key: value.clone().requires_grad_() for key, value in network.state_dict().items()}
    by_hand = torch.stack([literal_prediction(images[i], noise[i], 4, state, (4, 3)) for i in range(3)])
    torch.testing.assert_close(prediction, by_hand, rtol=0, atol=1e-11)
    expected = literal_loss(by_hand, images, mask, 2, normalise)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-11)
    trained = {name.partition(".")[2]: p for name, p in network.named_parameters() if p.requires_grad}
    assert state.keys() - trained.keys() == {"pos_embed", "decoder_pos_embed"}
    ours = torch.autograd.grad(loss, list(trained.values()))
    theirs = torch.autograd.grad(expected, [state[name] for name in trained])
    for name, one, other in zip(trained, ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=name)


def block_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    linears = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    shapes: dict[str, tuple[int, ...]] = {}
    for linear, (outputs, inputs) in linears.items():
        shapes[f"{name}.{linear}.weight"] = (outputs * width, inputs * width)
        shapes[f"{name}.{linear}.bias"] = (outputs * width,)
    for norm in ("norm1", "norm2"):
        shapes |= {f"{name}.{norm}.weight": (width,), f"{name}.{norm}.bias": (width,)}
    return shapes


def official_shapes() -> dict[str, tuple[int, ...]]:
    """Keys and shapes of mae_pretrain_vit_base_full.pth."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 768),
        "pos_embed": (1, 197, 768),
        "patch_embed.proj.weight": (768, 3, 16, 16),
        "patch_embed.proj.bias": (768,),
        "norm.weight": (768,),
        "norm.bias": (768,),
        "mask_token": (1, 1, 512),
        "decoder_embed.weight": (512, 768),
        "decoder_embed.bias": (512,),
        "decoder_pos_embed": (1, 197, 512),
        "decoder_norm.weight": (512,),
        "decoder_norm.bias": (512,),
        "decoder_pred.weight": (768, 512),
        "decoder_pred.bias": (768,),
    }
    for number in range(12):
        shapes |= block_shapes(f"blocks.{number}", 768)
    for number in range(8):
        shapes |= block_shapes(f"decoder_blocks.{number}", 512)
    return shapes


def test_the_official_state_dict_loads_strictly_and_comes_out_under_the_same_names() -> None:
    with torch.device("meta"):
        network = MaskedAutoencoder(224, 16, 768, 12, 12, 512, 8, 16, True)
        official = {key: torch.empty(shape) for key, shape in official_shapes().items()}
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == official_shapes()
    network.load_state_dict(official, strict=True, assign=True)
    assert sum(p.numel() for p in network.encoder.parameters()) == 85_798_656
    assert sum(p.numel() for p in network.decoder.parameters() if p.requires_grad) == 26_008_320
    del official["decoder_norm.bias"]
    with pytest.raises(RuntimeError, match=r"decoder_norm\.bias"):
        network.load_state_dict(official, strict=True)


def test_every_value_arrives_where_its_name_says_also_inside_another_module() -> None:
    one, two = (torch.nn.Sequential(MaskedAutoencoder(8, 4, 8, 1, 2, 4, 1, 1, True)) for _ in range(2))
    state = one.state_dict()
    assert "0.decoder_blocks.0.attn.qkv.weight" in state
    two.load_state_dict(state, strict=True)
    assert all(torch.equal(value, state[key]) for key, value in two.state_dict().items())
    assert len(state) == len(list(two.parameters()))


def test_the_encoder_sees_the_kept_patches_and_no_other() -> None:
    network = MaskedAutoencoder(16, 4, 16, 2, 2, 8, 1, 2, True).double()
    seen: list[Tensor] = []
    network.encoder.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    images, noise = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.rand(2, 16)
    _, prediction, mask = network.forward_masked(images, noise, 0.75)
    removed = mask[:, :, None].expand(-1, -1, 48).double()
    other = unpatchify(patchify(images, 4) + 7 * removed * torch.randn(2, 16, 48), 4)
    same = network.forward_masked(other, noise, 0.75)[1]
    assert seen[0].shape == (2, 1 + 4, 16)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(prediction, same)
    other = unpatchify(patchify(images, 4) + 7 * (1 - removed), 4)
    assert not torch.equal(network.forward_masked(other, noise, 0.75)[1], prediction)


# the objective


def make_vit() -> ViT:
    return ViT(16, 4, width=16, depth=2, heads=2)


def make_objective(backbone: Backbone, mask_ratio: float = 0.75) -> MAE:
    return MAE(backbone, mask_ratio, decoder_width=8, decoder_depth=1, decoder_heads=2, normalize_targets=True)


def make_batch(rows: slice) -> Batch:
    view = torch.randn(8, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))[rows]
    ids = torch.arange(8)[rows]
    return Batch(torch.zeros(len(ids), 3, 16, 16, dtype=torch.uint8), ids, ids, (view,))


def loss_and_gradients(rows: slice) -> dict[str, Tensor]:
    torch.manual_seed(0)
    objective = make_objective(make_vit()).double()
    output = objective(make_batch(rows), START._replace(step=3))
    output.loss.backward()
    gradients = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    return {"loss": output.loss.detach(), **gradients}


def uneven_loss(rows: slice) -> Tensor:
    """A mask that removes 36 patches of the first four images and 6 of the others."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(8, 3, 12, 12, dtype=torch.float64, generator=generator)
    prediction = torch.randn(8, 9, 48, dtype=torch.float64, generator=generator)
    mask = torch.ones(8, 9)
    mask[4:] = torch.arange(9) < 1.5
    return masked_patch_loss(prediction[rows], images[rows], mask[rows], 4, True)


def one_of_two(rank: int, folder: str) -> None:
    init = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    rows = slice(4 * rank, 4 * rank + 4)
    result = {**loss_and_gradients(rows), "uneven": uneven_loss(rows)}
    for value in result.values():  # what DDP does to gradients, and the log to the loss
        torch.distributed.all_reduce(value)
        value /= 2
    torch.save((result, masking_noise(START, 4, 16)), f"{folder}/{rank}.pt")
    leave()


def test_two_processes_have_the_masks_the_loss_and_every_gradient_of_one(tmp_path: Path) -> None:
    spawn(one_of_two, (str(tmp_path),), 2)
    (two, first), (_, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    one = {**loss_and_gradients(slice(0, 8)), "uneven": uneven_loss(slice(0, 8))}
    assert two.keys() == one.keys()
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=0, atol=1e-12, msg=name)
    assert torch.equal(torch.cat([first, second]), masking_noise(START, 8, 16))


def test_masks_follow_the_seed_and_the_step_and_differ_between_images() -> None:
    noise = masking_noise(START, 8, 16)
    assert torch.equal(noise, masking_noise(START._replace(total_steps=99), 8, 16))
    for other in (START._replace(step=1), START._replace(seed=1)):
        assert not torch.equal(noise, masking_noise(other, 8, 16))
    assert len({tuple(row) for row in noise.tolist()}) == 8
    torch.rand(5)  # whatever the global state is
    assert torch.equal(noise, masking_noise(START, 8, 16))


def test_the_objective_computes_what_the_official_module_does() -> None:
    objective = make_objective(make_vit()).double()
    network = MaskedAutoencoder(16, 4, 16, 2, 2, 8, 1, 2, True).double()
    network.load_state_dict({**objective.backbone.state_dict(), **objective.decoder.state_dict()}, strict=True)
    batch = make_batch(slice(0, 8))
    output = objective(batch, START)
    loss, _, mask = network.forward_masked(batch.views[0], masking_noise(START, 8, 16), 0.75)
    assert torch.equal(output.loss, loss)
    keep = (mask == 0).nonzero()[:, 1].view(8, 4)
    expected = objective.backbone.tokens(batch.views[0], keep)[:, 0]  # pooled by the class token
    torch.testing.assert_close(output.features, expected.detach(), rtol=0, atol=1e-12)


def test_steps_move_every_parameter_but_the_tables_of_positions_and_a_frozen_projection() -> None:
    backbone = make_vit()
    backbone.freeze_patch_projection()
    objective = make_objective(backbone).double()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        objective(make_batch(slice(0, 8)), START._replace(step=step)).loss.backward()
        optimizer.step()
    still = {name for name, value in objective.state_dict().items() if torch.equal(value, before[name])}
    patches = {"backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.bias"}
    assert still == {"backbone.pos_embed", "decoder.decoder_pos_embed"} | patches


def test_it_learns_to_paint_what_it_has_seen_often() -> None:
    objective = MAE(
        ViT(16, 4, 32, 2, 2), 0.5, decoder_width=32, decoder_depth=1, decoder_heads=2, normalize_targets=True
    )
    batch = make_batch(slice(0, 8))
    smooth = torch.nn.functional.interpolate(batch.views[0][:, :, :3, :3].float(), 16, mode="bilinear")
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for step in range(150):
        loss = objective(batch._replace(views=(smooth,)), START._replace(step=step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    collapsed = objective.collapsed_at(PLAN)
    assert collapsed is not None
    assert float(loss.detach()) < 0.7 * collapsed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_the_loss_is_float32_and_close_and_gradients_are_finite(dtype: torch.dtype) -> None:
    objective = make_objective(make_vit())
    batch = make_batch(slice(0, 8))
    batch = batch._replace(views=(batch.views[0].float(),))
    expected = float(objective(batch, START).loss.detach())
    with torch.autocast("cpu", dtype=dtype):
        output = objective(batch, START)
    assert output.loss.dtype == torch.float32
    assert float(output.loss.detach()) == pytest.approx(expected, rel=0.02)
    output.loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in objective.parameters() if p.grad is not None)


def test_pictures_hold_the_image_where_it_was_seen_and_the_paint_where_it_was_not() -> None:
    objective = make_objective(make_vit()).double()
    batch = make_batch(slice(0, 8))
    with torch.no_grad():
        pictures = objective.visualize(batch, seed=0)
    mask = random_masking(masking_noise(START, 8, 16), 0.75)[1].bool()
    seen, painted, images = (patchify(pictures[name], 4) for name in ("seen", "reconstructed", "original"))
    assert list(pictures) == ["seen", "reconstructed", "original"]
    assert torch.equal(pictures["original"], batch.views[0])
    assert torch.equal(seen[~mask], images[~mask])
    assert torch.equal(painted[~mask], images[~mask])
    assert set(seen[mask].flatten().tolist()) == {float(batch.views[0].mean())}
    network = MaskedAutoencoder(16, 4, 16, 2, 2, 8, 1, 2, True).double()
    network.load_state_dict({**objective.backbone.state_dict(), **objective.decoder.state_dict()}, strict=True)
    prediction = network.forward_masked(batch.views[0], masking_noise(START, 8, 16), 0.75)[1]
    by_hand = prediction * (images.var(2, keepdim=True) + 1e-6).sqrt() + images.mean(2, keepdim=True)
    torch.testing.assert_close(painted[mask], by_hand[mask].detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backbone", [ResNet(10, 0.125, "cifar"), TimmBackbone("resnet10t")])
def test_another_backbone_is_refused_in_one_line_that_names_those_that_serve(backbone: Backbone) -> None:
    with pytest.raises(UserError) as caught:
        make_objective(backbone)
    names = "vit_tiny or vit_small or vit_base or vit_large or vit_huge or vit_tiny_small"
    given = type(backbone).__name__
    assert str(caught.value) == f"objective=mae needs a ViT, which {given} is not: give backbone={names}"
    assert sorted(VITS) == sorted(path.stem for path in (CONF / "backbone").glob("vit_*.yaml"))


@pytest.mark.parametrize("mask_ratio", [0.0, 1.0, -0.5, 75.0])
def test_a_ratio_that_removes_nothing_or_everything_is_refused(mask_ratio: float) -> None:
    with pytest.raises(UserError, match=rf"^objective\.mask_ratio={mask_ratio} of 16 patches"):
        make_objective(make_vit(), mask_ratio)


def test_a_decoder_that_cannot_be_built_is_refused_by_its_key() -> None:
    with pytest.raises(UserError, match=r"^objective\.decoder_heads=3 does not divide objective\.decoder_width=8$"):
        MAE(make_vit(), 0.75, decoder_width=8, decoder_depth=1, decoder_heads=3, normalize_targets=True)


def test_two_views_are_refused_because_one_would_be_made_for_nothing() -> None:
    with pytest.raises(
        UserError, match=r"^views: these make 2 of an image, the objective takes exactly 1: give views=…$"
    ):
        make_objective(make_vit()).check(Plan(8, 1, 100, [32, 32]))
