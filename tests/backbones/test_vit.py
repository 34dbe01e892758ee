"""ViTs equal timm's; positions and initial weights are counted by hand."""

import math
from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from unlabeled.backbones.transformer import DropPath, attend
from unlabeled.backbones.vit import Block, ViT, sincos_position
from unlabeled.errors import UserError


@pytest.fixture(autouse=True)
def _seed() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def small(**changed: Any) -> ViT:
    given: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 3}
    return ViT(**(given | changed))


@pytest.mark.parametrize("pooling", ["cls", "gap"])
def test_weights_load_from_timm_and_back_under_the_same_names_and_give_equal_features(pooling: Any) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", pretrained=False).eval()
    for parameter in theirs.parameters():  # biases and norms that are not those of a fresh network
        nn.init.normal_(parameter, std=0.05)
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("head.")}
    with torch.device("meta"):  # no time spent on initial weights
        ours = ViT(224, 16, width=192, depth=12, heads=3, pooling=pooling)
    ours.load_state_dict(state, strict=True, assign=True)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        tokens = theirs.forward_features(images)
        expected = tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(1)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5)
    fresh = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0)
    fresh.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("patch_size", "width", "depth", "heads", "count"),
    [
        (16, 192, 12, 3, 5_524_416),
        (16, 384, 12, 6, 21_665_664),
        (16, 768, 12, 12, 85_798_656),
        (16, 1024, 24, 16, 303_301_632),
        (14, 1280, 32, 16, 630_764_800),
    ],
)
def test_sizes_have_the_published_number_of_parameters(
    patch_size: int, width: int, depth: int, heads: int, count: int
) -> None:
    with torch.device("meta"):
        network = ViT(224, patch_size, width, depth, heads)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("rows_first", [False, True])
def test_positions_equal_a_literal_loop(rows_first: bool) -> None:
    width, grid = 16, 3
    expected = [[0.0] * width]
    for row in range(grid):
        for column in range(grid):
            entry: list[float] = []
            for index in (row, column) if rows_first else (column, row):
                angles = [index / 10000 ** (i / (width / 4)) for i in range(width // 4)]
                entry += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            expected.append(entry)
    table = sincos_position(width, grid, rows_first)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table[0], torch.tensor(expected), rtol=0, atol=1e-7)
    position: Any = "sincos_rows_first" if rows_first else "sincos"
    assert torch.equal(small(width=16, heads=2, image_size=24, position=position).pos_embed, table)


@pytest.mark.parametrize("rows_first", [False, True])
def test_a_quarter_of_the_channels_follows_only_the_axis_that_is_said(rows_first: bool) -> None:
    table = sincos_position(32, 5, rows_first)[0, 1:].view(5, 5, 32)
    first, second = table[:, :, :16], table[:, :, 16:]
    along_rows, along_columns = (first, second) if rows_first else (second, first)
    assert torch.equal(along_rows, along_rows[:, :1].expand_as(along_rows))
    assert torch.equal(along_columns, along_columns[:1].expand_as(along_columns))


def step(network: ViT) -> list[str]:
    """Names of the tensors that one step of SGD with weight decay moves."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network(torch.randn(2, 3, 32, 32)).square().sum().backward()
    torch.optim.SGD(trained, lr=0.1, weight_decay=0.1).step()
    return [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]


def test_fixed_positions_never_move_and_learned_ones_do() -> None:
    assert "pos_embed" not in step(small())
    assert "pos_embed" in step(small(position="learned"))


def test_a_frozen_patch_projection_does_not_move_and_everything_else_does() -> None:
    network = small(initialisation="moco_v3")
    network.freeze_patch_projection()
    still = network.state_dict().keys() - set(step(network))
    # qkv.bias starts at 0 but has a gradient through the values
    assert still == {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert {"patch_embed.proj.weight", "patch_embed.proj.bias"} <= set(step(small()))


def bound_of(weight: Tensor) -> float:
    """The bound of a uniform distribution, from its deviation; the values are asserted to keep to it."""
    bound = float(weight.detach().std()) * math.sqrt(3)
    assert float(weight.detach().abs().max()) < 1.05 * bound
    return bound


@pytest.mark.parametrize(("scheme", "outputs"), [("mae", 3 * 96), ("moco_v3", 96)])
def test_initial_weights_are_those_of_the_official_code(scheme: Any, outputs: int) -> None:
    network = small(width=96, initialisation=scheme)
    block = network.blocks[0]
    assert isinstance(block, Block)
    attention, mlp = block.attn, block.mlp
    assert bound_of(attention.qkv.weight) == pytest.approx(math.sqrt(6 / (96 + outputs)), rel=0.02)
    assert bound_of(attention.proj.weight) == pytest.approx(math.sqrt(6 / 192), rel=0.02)
    assert bound_of(mlp.fc1.weight) == pytest.approx(math.sqrt(6 / (96 * 5)), rel=0.02)
    assert bound_of(network.patch_embed.proj.weight) == pytest.approx(math.sqrt(6 / (3 * 64 + 96)), rel=0.02)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            assert int(module.bias.count_nonzero()) == 0
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
    patch_bias = network.patch_embed.proj.bias
    assert patch_bias is not None
    assert network.cls_token is not None
    if scheme == "mae":
        assert float(network.cls_token.detach().std()) == pytest.approx(0.02, rel=0.3)
        assert bound_of(patch_bias) == pytest.approx(1 / math.sqrt(3 * 64), rel=0.2)
    else:
        assert float(network.cls_token.detach().std()) == pytest.approx(1e-6, rel=0.3)
        assert int(patch_bias.count_nonzero()) == 0


def test_simmims_initial_weights_are_cut_at_one_deviation_and_divided_by_depth() -> None:
    network, halved = small(width=96, initialisation="simmim"), 0.02 * 0.5396  # deviation of N(0, 1) cut at ±1
    block = network.blocks[0]
    assert isinstance(block, Block)
    assert network.cls_token is not None
    for weight, factor in ((block.attn.qkv.weight, 1), (network.patch_embed.proj.weight, 1), (block.mlp.fc2.weight, 2)):
        assert float(weight.detach().std()) == pytest.approx(halved / math.sqrt(factor), rel=0.03)
        assert float(weight.detach().abs().max()) <= 0.02 / math.sqrt(factor) + 1e-7
    assert float(network.cls_token.detach().abs().max()) <= 0.02


def test_patches_count_row_by_row_and_keep_chooses_them_after_their_position() -> None:
    network = small().double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    keep = torch.tensor([[5, 0, 2], [15, 3, 8]])
    assert network.cls_token is not None
    with torch.no_grad():
        every = network.tokens(images, torch.arange(16).expand(2, -1))
        torch.testing.assert_close(every, network.tokens(images), rtol=0, atol=1e-12)
        some = network.tokens(images, keep)
        assert some.shape == (2, 4, 24)
        by_hand = []
        for image, chosen in zip(images, keep, strict=True):
            tokens = [network.cls_token[0, 0] + network.pos_embed[0, 0]]
            for patch in chosen.tolist():
                top, left = 8 * (patch // 4), 8 * (patch % 4)
                cut = image[:, top : top + 8, left : left + 8]
                tokens.append(network.patch_embed(cut[None])[0, 0] + network.pos_embed[0, 1 + patch])
            by_hand.append(network.norm(network.blocks(torch.stack(tokens)[None]))[0])
    torch.testing.assert_close(some, torch.stack(by_hand), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patch_size": 7}, "backbone.patch_size=7 does not divide backbone.image_size=32"),
        ({"heads": 5}, "backbone.heads=5 does not divide backbone.width=24"),
        ({"width": 30}, "backbone.width=30 is not a multiple of 4, as sines and cosines of two axes need"),
        ({"position": "rope"}, "backbone.position=rope is not one of sincos, sincos_rows_first, learned, none"),
        (
            {"initialisation": "timm"},
            "backbone.initialisation=timm is not one of mae, moco_v3, dino, dinov2, beit, simmim",
        ),
        ({"class_token": False}, "backbone.pooling=cls: with backbone.class_token=false there is none: give gap"),
        ({"pooling": "max"}, "backbone.pooling=max is neither cls nor gap"),
    ],
)
def test_what_cannot_be_built_is_refused_by_its_key(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        small(**changed)
    assert str(caught.value) == message


def test_images_that_are_not_made_of_whole_patches_are_refused_by_the_key() -> None:
    message = r"^images of 32×20 pixels .* patches of 8: give views\.size a multiple of backbone\.patch_size=8$"
    with pytest.raises(UserError, match=message):
        small()(torch.zeros(1, 3, 32, 20))
    for size, line in ((20, "patches of 8 pixels: give 16, or"), (3, "give 8, or another multiple of it")):
        with pytest.raises(UserError, match=rf"^views\.size={size}: ViT cuts .*{line}"):
            small().check_size(size)
    small().check_size(32)
    small().check_size(48)


@pytest.mark.parametrize("position", ["sincos", "learned"])
@pytest.mark.parametrize("sides", [(16, 16), (48, 48), (16, 40)])
def test_images_of_another_size_get_positions_interpolated_as_timm_does(position: Any, sides: tuple[int, int]) -> None:
    network = small(position=position).eval()
    nn.init.normal_(network.pos_embed)
    grid = [side // 8 for side in sides]
    table = resample_abs_pos_embed(network.pos_embed, grid, (4, 4), 1, "bicubic", antialias=False)
    images = torch.randn(2, 3, *sides)
    with torch.no_grad():
        patches = network.patch_embed(images) + table[:, 1:]
        first = (network.cls_token + table[:, :1]).expand(2, -1, -1)
        expected = network.pool(network.norm(network.blocks(torch.cat([first, patches], 1))))
        torch.testing.assert_close(network(images), expected)


def test_gradients_reach_a_learned_table_from_small_crops_too() -> None:
    network = small(position="learned")
    network(torch.randn(2, 3, 16, 16)).sum().backward()
    assert network.pos_embed.grad is not None
    assert float(network.pos_embed.grad.abs().sum()) > 0


def test_paths_are_dropped_linearly_by_depth_or_uniformly_and_by_image_while_training_alone() -> None:
    for uniform, expected in ((False, [0, 0.2, 0.4]), (True, [0.4] * 3)):
        network = small(depth=3, drop_path=0.4, uniform_drop_path=uniform)
        found = [getattr(block.drop_path, "drop_prob", 0) for block in network.blocks]
        assert found == pytest.approx(expected)
    drop, x = DropPath(0.25), torch.ones(20_000, 2, 3)
    dropped = drop(x)
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0.0, 4 / 3])
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    assert float((dropped[:, 0, 0] == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert torch.equal(drop.eval()(x), x)


def test_a_dropped_block_leaves_its_image_as_it_was() -> None:
    block, x = Block(24, 3, drop_path=0.5), torch.randn(64, 5, 24)
    with torch.no_grad():
        kept = (block(x) != x).flatten(1).any(1)
    assert 0 < int((~kept).sum()) < 64  # of a quarter both are dropped


@pytest.mark.parametrize("registers", [0, 4])
def test_layer_scale_and_registers_are_those_of_timm(registers: int) -> None:
    theirs = timm.create_model(
        *("vit_tiny_patch16_224",),
        pretrained=False,
        img_size=32,
        patch_size=8,
        depth=2,
        init_values=0.1,
        reg_tokens=registers,
        num_classes=0,
        no_embed_class=False,
    ).eval()
    ours = ViT(32, 8, 192, 2, 3, "learned", layer_scale=0.1, registers=registers).eval()
    gammas = {name: value for name, value in ours.state_dict().items() if "gamma" in name}
    assert len(gammas) == 4
    assert all(torch.equal(value, torch.full((192,), 0.1)) for value in gammas.values())
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.05)
    state = dict(theirs.state_dict())
    if registers:  # timm's registers have positions unless told otherwise; ours, as DINOv2's, have none
        state["reg_token"] = state["reg_token"] + state["pos_embed"][:, 1 : 1 + registers]
        state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], state["pos_embed"][:, 1 + registers :]], 1)
    ours.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.tokens(images), theirs.forward_features(images), rtol=1e-4, atol=1e-5)
        found = ours.features(images, ["patches", "tokens", "cls"])
        assert found["tokens"].shape == (2, 16, 192)
        torch.testing.assert_close(found["patches"], theirs.forward_features(images)[:, 1 + registers :].mean(1))


def test_without_a_class_token_features_are_the_mean_of_the_patches_with_the_table_of_patches_alone() -> None:
    torch.manual_seed(0)
    network = small(class_token=False, pooling="gap").eval()
    assert "cls_token" not in network.state_dict()
    assert torch.equal(network.pos_embed, sincos_position(24, 4)[:, 1:])
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network.norm(network.blocks(network.patch_embed(images) + network.pos_embed))
        torch.testing.assert_close(network(images), expected.mean(1))
        assert network(images[:, :, :16, :16]).shape == (2, 24)
        assert network.features(images, ["last4"])["last4"].shape == (2, 48)
    with pytest.raises(UserError, match=r"^features=cls: ViT has no such features; allowed: last, last4, patches, to"):
        network.features(images, ["cls"])


def test_masked_patches_become_the_token_before_positions_are_added() -> None:
    network, token = small(registers=2).double().eval(), torch.randn(1, 1, 24, dtype=torch.float64)
    images, replace = torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.zeros(2, 16, dtype=torch.bool)
    replace[0, [0, 5, 15]] = replace[1, 3] = True
    assert network.cls_token is not None
    assert network.reg_token is not None
    with torch.no_grad():
        patches = network.patch_embed(images)
        for image, patch in ((0, 0), (0, 5), (0, 15), (1, 3)):
            patches[image, patch] = token[0, 0]
        first = torch.cat([network.cls_token + network.pos_embed[:, :1], network.reg_token], 1).expand(2, -1, -1)
        expected = network.norm(network.blocks(torch.cat([first, patches + network.pos_embed[:, 1:]], 1)))
        found = network.tokens(images, replace=replace, token=token)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    with pytest.raises(UserError, match="replace and token belong together"):
        network.tokens(images, replace=replace)
    with pytest.raises(UserError, match=r"replace \[2, 9\] must be \[2, 16\]"):
        network.tokens(images, replace=replace[:, :9], token=token)


def test_initial_weights_of_dino_are_truncated_normals() -> None:
    network = small(width=192, heads=3, initialisation="dino", position="learned")
    for module in network.modules():
        if isinstance(module, nn.Linear):
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.02)
            assert int(module.bias.count_nonzero()) == 0
    assert float(network.pos_embed.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert bound_of(network.patch_embed.proj.weight) == pytest.approx(1 / math.sqrt(3 * 64), rel=0.02)


def test_new_options_leave_the_initial_weights_of_a_seed_as_they_were() -> None:
    torch.manual_seed(3)
    plain = small(position="learned").state_dict()
    torch.manual_seed(3)
    other = small(position="learned", drop_path=0.1, layer_scale=1e-5).state_dict()
    assert all(torch.equal(other[name], value) for name, value in plain.items())


def test_attention_in_bfloat16_on_a_cpu_is_that_of_the_rounded_inputs_in_float32() -> None:
    q, k, v = (torch.randn(3, 2, 5, 8, generator=torch.Generator().manual_seed(each)) for each in range(3))
    rounded = [each.bfloat16().float() for each in (q, k, v)]
    weights = (rounded[0] @ rounded[1].transpose(2, 3) / 8**0.5).softmax(dim=3)
    for cast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
            found = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, (weights @ rounded[2]).bfloat16()) or torch.allclose(
            found.float(), weights @ rounded[2], rtol=2**-8, atol=1e-6
        )


def test_relative_positions_are_those_of_timms_beit() -> None:
    """A bias for each offset of two patches, shared by all blocks, and factors of what blocks add."""
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    shared: dict[str, Any] = {"use_abs_pos_emb": False, "use_shared_rel_pos_bias": True, "init_values": 0.1}
    theirs = timm.models.beit.Beit(**sizes, **shared, num_classes=0, global_pool="token").eval()
    ours = small(position="none", relative_position=True, layer_scale=0.1).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    state = dict(theirs.state_dict())
    for block in range(2):
        name = f"blocks.{block}"
        biases = [state.pop(f"{name}.attn.{part}_bias") for part in "qv"]
        state[f"{name}.attn.qkv.bias"] = torch.cat([biases[0], torch.zeros(24), biases[1]])
        state |= {f"{name}.ls{number}.gamma": state.pop(f"{name}.gamma_{number}") for number in (1, 2)}
    ours.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.forward_features(images)
        torch.testing.assert_close(ours.tokens(images), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.norm(ours.block_outputs(images)[-1]), expected, rtol=1e-4, atol=1e-5)
        recomputed = small(position="none", relative_position=True, layer_scale=0.1, gradient_checkpointing=True)
        recomputed.load_state_dict(state)
    torch.testing.assert_close(recomputed.eval()(images), ours(images))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"position": "none"}, r"^backbone\.position=none: .* give relative_position=true"),
        ({"relative_position": True, "registers": 2}, r"^backbone\.relative_position=true: .* backbone\.registers=0"),
        ({"relative_position": True, "class_token": False, "pooling": "gap"}, r"^backbone\.relative_position=true"),
    ],
)
def test_positions_that_a_network_cannot_have_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**changed)


def test_relative_positions_are_for_images_of_one_size() -> None:
    with pytest.raises(UserError, match=r"^views\.size=64: ViT takes images of 32 pixels alone"):
        small(position="none", relative_position=True).check_size(64)
