"""Checkpoints as other projects write them load tensor by tensor, or are refused with every key that does not fit.

Each file below is made by rules of its own, from the sources that it names, and saved as its project saves it.
"""

import argparse
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from unlabeled.backbones.regnet import RegNetY
from unlabeled.backbones.resnet import ResNet
from unlabeled.backbones.timm import TimmBackbone
from unlabeled.backbones.torchvision import TorchvisionBackbone
from unlabeled.backbones.vit import ViT, sincos_position
from unlabeled.errors import UserError
from unlabeled.objective import Backbone
from unlabeled.objectives.mae import MaskedAutoencoder
from unlabeled.weights import Checkpoint, check_same_backbone, load_backbone, read_checkpoint

State = dict[str, Any]


def seeded(make: Callable[[], Backbone], seed: int) -> Backbone:
    """Fresh weights, and BatchNorms that are no identity, or one in another's place would go unseen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    nn.init.uniform_(tensor, 0.5, 1.5)
                assert module.num_batches_tracked is not None
                module.num_batches_tracked.fill_(7 + seed)
    return network.eval()


def resnet() -> Backbone:
    return ResNet(10, 0.125, "imagenet")


def bottlenecks() -> Backbone:
    return ResNet(50, 0.125, "imagenet")


def vit() -> Backbone:
    return ViT(32, 8, width=32, depth=2, heads=4)


def vit_patches() -> Backbone:
    return ViT(32, 8, width=32, depth=2, heads=4, pooling="gap", class_token=False)


def vit_relative() -> Backbone:
    """As SimMIM's and data2vec's, with values that are not those of a fresh network; keys have no bias there."""
    network = ViT(32, 8, width=32, depth=2, heads=4, position="none", relative_position=True, layer_scale=0.1)
    for name, parameter in network.named_parameters():
        if name.endswith((".bias", ".gamma", "table")):
            nn.init.normal_(parameter, std=0.5)
        if name.endswith("qkv.bias"):
            nn.init.zeros_(parameter[32:64])
    return network


def vit_moco_v3() -> Backbone:
    return ViT(32, 8, width=32, depth=2, heads=4, position="sincos_rows_first", initialisation="moco_v3")


def vit_learned() -> Backbone:
    return ViT(32, 8, width=32, depth=2, heads=4, position="learned")


def vit_dinov2() -> Backbone:
    return ViT(32, 8, width=32, depth=4, heads=4, position="learned", initialisation="dinov2", layer_scale=0.5)


def vit_registers() -> Backbone:
    own = {"position": "learned", "initialisation": "dino", "layer_scale": 0.5, "registers": 3}
    return ViT(32, 8, width=32, depth=2, heads=4, **own)  # type: ignore[arg-type]


def regnet() -> Backbone:
    return RegNetY(depth=6, w_0=16, w_a=12.0, w_m=2.0, group_width=8)


def linear(prefix: str, inputs: int, outputs: int, bias: bool = True) -> State:
    weight = {f"{prefix}.weight": torch.rand(outputs, inputs)}
    return weight | ({f"{prefix}.bias": torch.rand(outputs)} if bias else {})


def norm(prefix: str, width: int) -> State:
    values = {key: torch.rand(width) for key in ("weight", "bias", "running_mean", "running_var")}
    return {f"{prefix}.{key}": value for key, value in values.items()} | {
        f"{prefix}.num_batches_tracked": torch.tensor(3)
    }


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def sgd(count: int = 2) -> State:
    """The state of an optimizer, as torch has it."""
    momentum = {number: {"momentum_buffer": torch.rand(3)} for number in range(count)}
    return {"state": momentum, "param_groups": [{"lr": 0.1, "params": list(range(count))}]}


def adamw() -> State:
    return {"state": {0: {"step": 5, "exp_avg": torch.rand(3), "exp_avg_sq": torch.rand(3)}}, "param_groups": []}


SCALER = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 12}


def moved(state: State) -> State:
    """The other encoder, whose tensors must not be taken."""
    return {key: value + 1 for key, value in state.items()}


# github.com/facebookresearch/moco: main_moco.py saves {epoch, arch, state_dict, optimizer} of the network in DDP
def moco_v1(state: State) -> State:
    keys = under("encoder_k.", moved(state)) | linear("encoder_k.fc", 64, 16)
    queue = {"queue": torch.rand(16, 32), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    network = under("encoder_q.", state) | linear("encoder_q.fc", 64, 16) | keys | queue
    return {"epoch": 200, "arch": "resnet50", "state_dict": under("module.", network), "optimizer": sgd()}


def moco_v2(state: State) -> State:
    heads = linear("encoder_q.fc.0", 64, 64) | linear("encoder_q.fc.2", 64, 16)
    heads |= linear("encoder_k.fc.0", 64, 64) | linear("encoder_k.fc.2", 64, 16)
    queue = {"queue": torch.rand(16, 32), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    network = under("encoder_q.", state) | heads | under("encoder_k.", moved(state)) | queue
    return {"epoch": 800, "arch": "resnet50", "state_dict": under("module.", network), "optimizer": sgd()}


# github.com/facebookresearch/moco-v3: main_moco.py; the last BatchNorm of an MLP has no weight
def moco_v3(head: str) -> Callable[[State], State]:
    def layout(state: State) -> State:
        network: State = {}
        for encoder, tensors in (("base_encoder.", state), ("momentum_encoder.", moved(state))):
            network |= under(encoder, tensors)
            network |= linear(f"{encoder}{head}.0", 32, 16, bias=False) | norm(f"{encoder}{head}.1", 16)
        network |= linear("predictor.0", 16, 16, bias=False) | norm("predictor.1", 16)
        content = {"epoch": 300, "arch": "vit_small", "state_dict": under("module.", network), "optimizer": adamw()}
        return content | {"scaler": SCALER}

    return layout


def deit(state: State) -> State:
    """convert_to_deit.py of the same repository."""
    return {"model": dict(state)}


# github.com/facebookresearch/swav: the released files are the network's state dict in DDP and nothing else
def swav(state: State) -> State:
    head = linear("projection_head.0", 64, 16) | norm("projection_head.1", 16) | linear("projection_head.3", 16, 8)
    return under("module.", state | head | {"prototypes.weight": torch.rand(30, 8)})


def swav_training(state: State) -> State:
    """main_swav.py; MultiPrototypes."""
    head = linear("projection_head.0", 64, 16) | norm("projection_head.1", 16) | linear("projection_head.3", 16, 8)
    prototypes = {f"prototypes.prototypes{number}.weight": torch.rand(30, 8) for number in range(2)}
    content = {"epoch": 9, "state_dict": under("module.", state | head | prototypes), "optimizer": sgd()}
    return content | {"amp": {"loss_scaler0": {"loss_scale": 1.0}}}


# github.com/facebookresearch/suncet, src/paws_train.py: save_dict and init_model
def paws(state: State) -> State:
    head = linear("fc.fc1", 64, 64) | norm("fc.bn1", 64) | linear("fc.fc2", 64, 64) | norm("fc.bn2", 64)
    head |= linear("fc.fc3", 64, 16) | norm("pred.bn1", 16) | linear("pred.fc1", 16, 4) | linear("pred.fc2", 4, 16)
    content = {"encoder": under("module.", state | head), "opt": sgd(), "epoch": 300, "unlabel_prob": 0.9}
    return content | {"loss": 0.3, "lr": 6.4, "world_size": 64, "amp": SCALER}


# github.com/facebookresearch/mae, util/misc.py save_model; the whole of models_mae.py
def mae(state: State) -> State:
    network = MaskedAutoencoder(32, 8, 32, 2, 4, 16, 1, 4, normalize_targets=True).state_dict()
    assert set(state) < set(network)
    args = argparse.Namespace(model="mae_vit_base_patch16", mask_ratio=0.75, norm_pix_loss=True, output_dir=Path("/x"))
    content = {"model": {**network, **state}, "optimizer": adamw(), "epoch": 799, "scaler": SCALER, "args": args}
    return content


def mae_released(state: State) -> State:
    """mae_pretrain_vit_base.pth: the encoder alone."""
    return {"model": OrderedDict(state)}


# github.com/facebookresearch/dino, main_dino.py; the student is in DDP, the teacher where it has BatchNorms
def dino(teacher: str) -> Callable[[State], State]:
    def layout(state: State) -> State:
        head = linear("head.mlp.0", 32, 16) | linear("head.mlp.2", 16, 8)
        head |= {"head.last_layer.weight_g": torch.ones(40, 1), "head.last_layer.weight_v": torch.rand(40, 8)}
        student = under("module.backbone.", moved(state)) | under("module.", head)
        content: State = {"student": student, "teacher": under(teacher, under("backbone.", state) | head)}
        content |= {"optimizer": adamw(), "epoch": 100, "args": argparse.Namespace(arch="vit_small", patch_size=16)}
        return content | {"dino_loss": {"center": torch.rand(1, 40)}, "fp16_scaler": SCALER}

    return layout


# github.com/bytedance/ibot, main_ibot.py and models/head.py: a shared head has its last layer under both names
def ibot(state: State) -> State:
    last = {"weight_g": torch.ones(40, 1), "weight_v": torch.rand(40, 8)}
    head = linear("head.mlp.0", 32, 16) | linear("head.mlp.2", 16, 8)
    head |= under("head.last_layer.", last) | under("head.last_layer2.", last)
    student = under("backbone.", moved(state) | {"masked_embed": torch.rand(1, 32)}) | head
    content: State = {"student": under("module.", student), "teacher": under("backbone.", state) | head}
    content |= {"optimizer": adamw(), "epoch": 800, "args": argparse.Namespace(arch="vit_small", patch_size=16)}
    return content | {
        "ibot_loss": {"center": torch.rand(1, 40), "center2": torch.rand(1, 1, 40)},
        "fp16_scaler": SCALER,
    }


def ibot_student(state: State) -> State:
    """extract_backbone_weights.py with --checkpoint_key student, as checkpoints of ImageNet-22K are published."""
    return {"state_dict": dict(state) | {"masked_embed": torch.rand(1, 32)}}


# github.com/facebookresearch/dinov2, models/vision_transformer.py; released files are bare
def dinov2_released(state: State) -> State:
    renamed = {"reg_token": "register_tokens"}
    return {renamed.get(key, key): value for key, value in state.items()} | {"mask_token": torch.rand(1, 32)}


def dinov2(state: State) -> State:
    """train/train.py, do_test, with two chunks of two blocks, whose numbers go on (block_chunks)."""
    chunked = {
        re.sub(r"^blocks\.(\d+)", lambda found: f"blocks.{int(found[1]) // 2}.{found[1]}", key): value
        for key, value in dinov2_released(state).items()
    }
    heads = linear("dino_head.mlp.0", 32, 16) | linear("ibot_head.mlp.0", 32, 16)
    for head in ("dino_head", "ibot_head"):
        heads |= under(f"{head}.last_layer.", {"weight_g": torch.ones(40, 1), "weight_v": torch.rand(40, 16)})
    return {"teacher": under("backbone.", chunked) | heads}


# github.com/facebookresearch/vissl, vissl/utils/checkpoint.py and trunks/resnext.py
def vissl(state: State) -> State:
    return vissl_file(under("_feature_blocks.", state))


def vissl_file(trunk: State) -> State:
    heads = linear("0.projection_head.0", 64, 16) | {"0.prototypes0.weight": torch.rand(30, 8)}
    model = {"model": {"trunk": trunk, "heads": heads}, "meters": []}
    classy = {"base_model": model, "optimizer": {"optim": sgd()}, "loss": {"center": torch.rand(3)}, "train": True}
    return {"phase_idx": 99, "iteration": 5, "loss": 1.0, "type": "consolidated", "classy_state_dict": classy}


# trunks/regnet.py around github.com/facebookresearch/ClassyVision, models/anynet.py
def seer_names(state: State, part: str = "") -> State:
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^stem\.", "_feature_blocks.conv1.stem.", key)
        key = re.sub(r"^trunk_output\.block(\d)\.", lambda found: f"_feature_blocks.res{int(found[1]) + 1}.{part}", key)
        for ours, theirs in (("f.c.0", "f.c"), ("f.c.1", "f.final_bn"), (".proj.1", ".bn"), (".proj.0", ".proj")):
            key = key.replace(ours, theirs)
        key = key.replace("se.fc1", "se.excitation.0").replace("se.fc2", "se.excitation.2")
        renamed[key] = value
    return renamed


def seer(state: State) -> State:
    return vissl_file(seer_names(state))


def seer_fsdp(state: State) -> State:
    """trunks/regnet_fsdp.py puts the blocks that are recomputed together into parts."""
    return vissl_file(seer_names(state, part="block1-part0."))


# github.com/Separius/SimCLRv2-Pytorch, convert.py and its resnet.py
def simclr_v2(state: State) -> State:
    inside = {
        "conv1": "net.0",
        "bn1": "net.1.0",
        "conv2": "net.2",
        "bn2": "net.3.0",
        "conv3": "net.4",
        "bn3": "net.5.0",
    }
    network = linear("fc", 256, 10)
    for key, value in state.items():
        words = key.split(".")
        if words[0] in ("conv1", "bn1"):
            network[f"net.0.{'0' if words[0] == 'conv1' else '1.0'}.{words[1]}"] = value
        elif words[2] == "downsample":
            part = "shortcut" if words[3] == "0" else "bn.0"
            network[f"net.{words[0][-1]}.blocks.{words[1]}.projection.{part}.{words[4]}"] = value
        else:
            network[f"net.{words[0][-1]}.blocks.{words[1]}.{inside[words[2]]}.{words[3]}"] = value
    return {"resnet": network, "head": linear("layers.0", 64, 16, bias=False) | norm("layers.1", 16)}


# github.com/tonylins/simclr-converter, convert.py: torchvision's names
def simclr_v1(state: State) -> State:
    return {"state_dict": state | linear("fc", 64, 10)}


# github.com/vturrisi/solo-learn, solo/methods/base.py and mocov3.py, by Lightning
def solo(state: State) -> State:
    network = under("backbone.", state) | linear("classifier", 64, 10) | under("momentum_backbone.", moved(state))
    network |= linear("projector.0", 64, 16) | linear("momentum_projector.0", 64, 16) | linear("predictor.0", 16, 16)
    network |= {"queue": torch.rand(2, 8), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    content = {"epoch": 400, "global_step": 9, "state_dict": network, "optimizer_states": [sgd()], "callbacks": {}}
    return content | {"lr_schedulers": [{"last_epoch": 3}], "loops": {}, "hyper_parameters": {"lr": 0.3}}


# github.com/lightly-ai/lightly, benchmarks/imagenet/resnet50/simclr.py and dino.py
def lightly(state: State) -> State:
    network = under("backbone.", state) | linear("projection_head.layers.0", 64, 16)
    network |= linear("online_classifier.linear", 64, 10)
    return {"epoch": 99, "state_dict": network, "optimizer_states": [sgd()]}


def lightly_dino(state: State) -> State:
    student = under("student_backbone.", moved(state))
    heads = linear("projection_head.layers.0", 64, 16) | linear("student_projection_head.layers.0", 64, 16)
    network = under("backbone.", state) | student | heads | {"criterion.center": torch.rand(1, 8)}
    return {"state_dict": network | linear("online_classifier.linear", 64, 10), "optimizer_states": [sgd()]}


def lightly_sequence(state: State) -> State:
    """Its examples: nn.Sequential(*list(resnet.children())[:-1])."""
    places = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    numbered = {f"{places[key.split('.')[0]]}.{key.partition('.')[2]}": value for key, value in state.items()}
    return {"state_dict": under("backbone.", numbered) | linear("projection_head.layers.0", 64, 16)}


def lightly_vit(copy: str) -> Callable[[State], State]:
    """Its MaskedVisionTransformerTIMM, in MAE and, with a trained copy, in DINO."""

    def layout(state: State) -> State:
        network = {"backbone.mask_token": torch.rand(1, 1, 32)} | under("backbone.vit.", state)
        if copy:
            network |= under(f"{copy}backbone.vit.", moved(state)) | {
                f"{copy}backbone.mask_token": torch.rand(1, 1, 32)
            }
        return {"state_dict": network | linear("decoder.decoder_embed", 32, 16), "optimizer_states": [sgd()]}

    return layout


# github.com/facebookresearch/barlowtwins, main.py: DDP's state dict, with the BatchNorm of the cross-correlation
def barlow_twins(state: State) -> State:
    network = under("backbone.", state) | linear("projector.0", 64, 16, bias=False) | norm("projector.1", 16)
    network |= {key: value for key, value in norm("bn", 16).items() if not key.endswith(("weight", "bias"))}
    return {"epoch": 1000, "model": under("module.", network), "optimizer": sgd()}


# github.com/facebookresearch/vicreg, main_vicreg.py: model.pth; its expander has two hidden layers
def vicreg(state: State) -> State:
    expander = linear("0", 64, 16) | norm("1", 16) | linear("3", 16, 16) | norm("4", 16) | linear("6", 16, 16, False)
    network = under("backbone.", state) | under("projector.", expander)
    return {"epoch": 1000, "model": under("module.", network), "optimizer": sgd()}


# github.com/facebookresearch/simsiam, main_simsiam.py and simsiam/builder.py: the projector is the encoder's fc
def simsiam(state: State) -> State:
    head = linear("fc.0", 64, 64, False) | norm("fc.1", 64) | linear("fc.3", 64, 64, False) | norm("fc.4", 64)
    head |= linear("fc.6", 64, 16) | {key: value for key, value in norm("fc.7", 16).items() if "running" in key}
    predictor = linear("predictor.0", 16, 4, False) | norm("predictor.1", 4) | linear("predictor.3", 4, 16)
    network = under("encoder.", state | head) | predictor
    return {"epoch": 100, "arch": "resnet50", "state_dict": under("module.", network), "optimizer": sgd()}


# github.com/facebookresearch/ijepa, src/train.py and src/models/vision_transformer.py
def ijepa(state: State) -> State:
    predictor = linear("predictor_embed", 32, 16) | linear("predictor_proj", 16, 32)
    predictor |= {"mask_token": torch.rand(1, 1, 16), "predictor_pos_embed": torch.rand(1, 16, 16)}
    predictor |= linear("predictor_blocks.0.attn.qkv", 16, 48) | linear("predictor_blocks.0.mlp.fc1", 16, 64)
    predictor |= {"predictor_norm.weight": torch.rand(16), "predictor_norm.bias": torch.rand(16)}
    content: State = {"encoder": under("module.", moved(state)), "predictor": under("module.", predictor)}
    content |= {"opt": adamw()}
    content |= {"scaler": SCALER, "target_encoder": under("module.", state), "epoch": 300, "loss": 0.2}
    return content | {"batch_size": 128, "world_size": 16, "lr": 0.001}


def beits_names(state: State, mlp: tuple[str, str] = ("fc1", "fc2")) -> State:
    """github.com/microsoft/unilm, beit/modeling_finetune.py: no bias of keys, factors without a module of their own."""
    named: State = {}
    for key, value in state.items():
        if key.endswith("qkv.bias"):
            layer = key.removesuffix("qkv.bias")
            named |= {f"{layer}q_bias": value[:32].clone(), f"{layer}v_bias": value[64:].clone()}
        else:
            key = re.sub(r"ls([12])\.gamma", r"gamma_\1", key)
            named[re.sub(r"mlp\.fc([12])", lambda found: f"mlp.{mlp[int(found[1]) - 1]}", key)] = value
    return named | {"rel_pos_bias.relative_position_index": torch.zeros(17, 17, dtype=torch.long)}


# github.com/microsoft/SimMIM, utils.py: save_checkpoint
def simmim(state: State) -> State:
    network = under("encoder.", beits_names(state)) | {"encoder.mask_token": torch.rand(1, 1, 32)}
    network |= {"decoder.0.weight": torch.rand(192, 32, 1, 1), "decoder.0.bias": torch.rand(192)}
    content = {"model": network, "optimizer": adamw(), "lr_scheduler": {"last_epoch": 3}, "max_accuracy": 0.0}
    return content | {"epoch": 799, "amp": {"loss_scaler0": {"loss_scale": 65536.0, "unskipped": 3}}}


# github.com/facebookresearch/data2vec_vision, beit/utils.py: save_model
def data2vec(state: State) -> State:
    head = linear("lm_head", 32, 32) | {"mask_token": torch.rand(1, 1, 32)}
    copy = moved(beits_names(state)) | head
    content = {"model": beits_names(state) | head, "optimizer": adamw(), "epoch": 799, "scaler": SCALER}
    return content | {"args": argparse.Namespace(lr=2e-3), "model_ema": copy}


# github.com/facebookresearch/fairseq, examples/data2vec/models/data2vec_vision.py and fairseq/checkpoint_utils.py
def data2vec_fairseq(state: State) -> State:
    network: State = {"mask_emb": torch.rand(1, 1, 32)} | linear("final_proj", 32, 32)
    for key, value in beits_names(state, ("0", "2")).items():
        renamed = {"cls_token": "cls_emb", "patch_embed.proj.weight": "patch_embed.conv.weight"}
        renamed |= {"patch_embed.proj.bias": "patch_embed.conv.bias"}
        network[renamed.get(key, f"encoder.{key}")] = value
    network["_ema"] = {key.removeprefix("encoder."): moved({key: value})[key] for key, value in network.items()}
    content = {"model": network, "last_optimizer_state": adamw(), "extra_state": {"epoch": 300}, "task_state": {}}
    return content | {"optimizer_history": [{"num_updates": 400_000}]}


def huggingface(state: State) -> State:
    """github.com/huggingface/transformers: names of models/beit, data2vec, vit and ijepa."""
    ends = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    ends |= {f"patch_embed.proj.{end}": f"embeddings.patch_embeddings.projection.{end}" for end in ("weight", "bias")}
    ends |= {f"norm.{end}": f"layernorm.{end}" for end in ("weight", "bias")}
    table = "rel_pos_bias.relative_position_bias_table"
    ends |= {table: f"encoder.relative_position_bias.{table.partition('.')[2]}"}
    layers = {"norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense"}
    layers |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    named: State = {}
    for key, value in state.items():
        _, _, rest = key.partition("blocks.")
        block, _, part = rest.partition(".")
        layer, _, end = part.rpartition(".")
        place = f"encoder.layer.{block}"
        if layer == "attn.qkv":
            for name, third in zip(("query", "key", "value"), value.clone().chunk(3), strict=True):
                if name != "key" or end == "weight" or table not in state:  # models/beit: its keys have no bias
                    named[f"{place}.attention.attention.{name}.{end}"] = third
        elif layer in ("ls1", "ls2"):
            named[f"{place}.lambda_{layer[2]}"] = value
        else:
            named[ends.get(key) or f"{place}.{layers[layer]}.{end}"] = value
    return named


# facebook/data2vec-vision-base: Data2VecVisionModel; facebook/ijepa_vith14_1k: IJepaModel
def huggingface_data2vec(state: State) -> State:
    more = {"embeddings.mask_token": torch.rand(1, 1, 32)} | linear("pooler.layernorm", 32, 32)
    more |= {"encoder.relative_position_bias.relative_position_index": torch.zeros(17, 17, dtype=torch.long)}
    return under("data2vec_vision.", huggingface(state) | more) | linear("classifier", 32, 10)


# github.com/facebookresearch/msn, src/msn_train.py: save_checkpoint
def msn(state: State) -> State:
    head = linear("fc.fc1", 32, 64) | norm("fc.bn1", 64) | linear("fc.fc3", 64, 16)
    content = {"encoder": under("module.", moved(state) | head), "opt": adamw(), "prototypes": torch.rand(30, 16)}
    return content | {"target_encoder": under("module.", state | head), "epoch": 800, "loss": 0.3, "batch_size": 16}


# github.com/galilai-group/stable-pretraining, module.py, backbone/utils.py and callbacks/probe.py, by Lightning
def stable_pretraining(state: State) -> State:
    network = under("backbone.", state) | linear("projector.0", 64, 16)
    network |= linear("callbacks_modules.linear_probe", 64, 10)
    network |= {"callbacks_metrics.linear_probe._val.top1.tp": torch.zeros(1)}
    return {"epoch": 99, "state_dict": network, "optimizer_states": [sgd()], "callbacks": {}, "loops": {}}


def stable_pretraining_teacher(state: State) -> State:
    network: State = {}
    head = linear("0", 64, 16)
    for part, inner, other in (("backbone", state, moved(state)), ("projector", head, moved(head))):
        network |= under(f"{part}.student.", other) | under(f"{part}.teacher.", inner)
        network |= {f"{part}.{end}ema_coefficient": torch.tensor(0.99) for end in ("base_", "final_", "")}
    return {"state_dict": network | {"dino_loss.center": torch.rand(1, 8)}, "optimizer_states": [sgd()]}


# github.com/open-mmlab/mmselfsup: models/algorithms/moco.py of its first version, byol.py and mocov3.py of its last
def mm_moco(state: State) -> State:
    neck = linear("mlp.0", 64, 64) | linear("mlp.2", 64, 16)
    network = under("backbone.", state) | under("neck.", neck)
    network |= under("encoder_q.0.", {key: value.clone() for key, value in state.items()}) | under("encoder_q.1.", neck)
    network |= under("encoder_k.0.", moved(state)) | under("encoder_k.1.", neck)
    network |= {"queue": torch.rand(16, 32), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"meta": {"epoch": 200}, "state_dict": network, "optimizer": sgd()}


def mm_byol(state: State) -> State:
    neck = linear("fc0", 64, 64) | norm("bn0", 64) | linear("fc1", 64, 16)
    network = under("data_preprocessor.", {"mean": torch.rand(3, 1, 1), "std": torch.rand(3, 1, 1)})
    network |= under("backbone.", state) | under("neck.", neck) | under("target_net.module.0.", moved(state))
    network |= under("target_net.module.1.", neck) | {"target_net.steps": torch.tensor(9)}
    network |= linear("head.predictor.fc0", 16, 16)
    return {"meta": {"epoch": 200}, "state_dict": network, "optimizer": sgd(), "message_hub": {}}


def mm_vit(state: State) -> State:
    """Names of mmpretrain's vision_transformer.py."""
    names = {"norm1": "ln1", "norm2": "ln2", "mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1"}
    names |= {"patch_embed.proj": "patch_embed.projection", "blocks.": "layers."}
    renamed: State = {}
    for key, value in state.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        renamed[re.sub(r"^norm\.", "ln1.", key)] = value
    return {"state_dict": under("backbone.", renamed) | linear("neck.fc0", 32, 16), "meta": {}}


def own_run(state: State) -> State:
    network = under("objective.backbone.", state) | linear("objective.projector.0", 64, 16)
    network |= under("objective.momentum_encoder.backbone.", moved(state)) | {"objective.queue.keys": torch.rand(4, 8)}
    content = {"state_dict": network, "config": {"seed": 3}, "progress": {"step": 7}, "optimizer_states": [sgd()]}
    return content | {"callbacks": {}, "loops": {}, "faults": {"seen": torch.ones(1)}}


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {"state_dict": under(prefix, state) | linear("projector.0", 64, 16)}


def compiled(state: State) -> State:
    return {"model": under("_orig_mod.", state | linear("fc", 64, 10))}


def bare(state: State) -> State:
    return state | linear("fc", 64, 10)


def headless(state: State) -> State:
    return dict(state)


@dataclass
class Case:
    name: str
    make: Callable[[], Backbone]
    write: Callable[[State], State]
    layout: str
    part: str
    left_out: dict[str, int]
    apart: int = 0  # tensors that are joined with others to one: parts of queries, keys and values, of a copy too


BEITS = {"decoder": 3, "indices of offsets": 1, "optimizer": 2}
CASES = [
    Case("MoCo v1", resnet, moco_v1, "MoCo v1", "query encoder", {}),
    Case("MoCo v2", resnet, moco_v2, "MoCo v2", "query encoder", {}),
    Case("MoCo v3 ResNet", resnet, moco_v3("fc"), "MoCo v3", "base encoder", {}),
    Case("MoCo v3 ViT", vit_moco_v3, moco_v3("head"), "MoCo v3", "base encoder", {}),
    Case("MoCo v3 as DeiT", vit_moco_v3, deit, "plain state dict", "the network", {}),
    Case("SwAV", resnet, swav, "SwAV", "encoder", {"projector": 9, "prototypes": 1}),
    Case("SwAV training", resnet, swav_training, "SwAV", "encoder", {"projector": 9, "prototypes": 2, "optimizer": 2}),
    Case("PAWS", resnet, paws, "PAWS", "encoder", {"projector": 16, "predictor": 9, "optimizer": 2}),
    Case("MAE", vit, mae, "MAE", "encoder", {}),
    Case("MAE released", vit, mae_released, "plain state dict", "the network", {}),
    Case("DINO ViT", vit_learned, dino(""), "DINO", "teacher, as in the official evaluation", {}),
    Case("DINO ResNet", resnet, dino("module."), "DINO", "teacher, as in the official evaluation", {}),
    Case("DINO ViT released", vit_learned, headless, "plain state dict", "the network", {}),
    Case("DINO ResNet released", resnet, headless, "plain state dict", "the network", {}),
    Case("iBOT", vit_learned, ibot, "iBOT", "teacher, as in the official evaluation", {}),
    Case("iBOT released", vit_learned, headless, "plain state dict", "the network", {}),
    Case("iBOT student", vit_learned, ibot_student, "plain state dict", "the network", {"mask token": 1}),
    Case(
        "DINOv2",
        vit_dinov2,
        dinov2,
        "DINOv2",
        "teacher, as in the official evaluation",
        {"projector": 8, "mask token": 1},
    ),
    Case("DINOv2 released", vit_dinov2, dinov2_released, "plain state dict", "the network", {"mask token": 1}),
    Case("DINOv2 registers", vit_registers, dinov2_released, "plain state dict", "the network", {"mask token": 1}),
    Case("VISSL ResNet", resnet, vissl, "VISSL", "trunk", {"heads": 3, "optimizer": 2, "loss": 1}),
    Case("SEER", regnet, seer, "VISSL", "trunk", {"heads": 3, "optimizer": 2, "loss": 1}),
    Case("SEER FSDP", regnet, seer_fsdp, "VISSL", "trunk", {"heads": 3, "optimizer": 2, "loss": 1}),
    Case(
        "SimCLR v2",
        bottlenecks,
        simclr_v2,
        "SimCLR v2 (Separius/SimCLRv2-Pytorch)",
        "encoder",
        {"classifier": 2, "projector": 6},
    ),
    Case("SimCLR v1", resnet, simclr_v1, "plain state dict", "the network", {"classifier": 2}),
    Case("solo-learn", resnet, solo, "solo-learn", "backbone", {}),
    Case("lightly", resnet, lightly, "lightly", "backbone", {"projector": 2, "classifier": 2, "optimizer": 2}),
    Case(
        "lightly DINO", resnet, lightly_dino, "lightly", "backbone, the momentum copy, as in lightly's benchmarks", {}
    ),
    Case("lightly sequence", resnet, lightly_sequence, "lightly", "backbone", {"projector": 2}),
    Case("lightly MAE", vit, lightly_vit(""), "lightly", "backbone", {"decoder": 3, "optimizer": 2}),
    Case(
        "lightly DINO ViT",
        vit,
        lightly_vit("student_"),
        "lightly",
        "backbone, the momentum copy, as in lightly's benchmarks",
        {},
    ),
    Case("Barlow Twins", resnet, barlow_twins, "Barlow Twins", "backbone", {}),
    Case("Barlow Twins released", resnet, headless, "plain state dict", "the network", {}),
    Case("VICReg", resnet, vicreg, "VICReg", "backbone", {"projector": 15, "optimizer": 2}),
    Case("VICReg released", resnet, headless, "plain state dict", "the network", {}),
    Case("SimSiam", resnet, simsiam, "SimSiam", "encoder", {"projector": 16, "predictor": 8, "optimizer": 2}),
    Case("I-JEPA", vit_patches, ijepa, "I-JEPA", "target encoder, as in the official evaluation", {}),
    Case("SimMIM", vit_relative, simmim, "SimMIM", "encoder", BEITS, 2),
    Case(
        "data2vec",
        vit_relative,
        data2vec,
        "BEiT or data2vec",
        "trained network, as in the official fine-tuning",
        {},
        2 * 2,
    ),
    Case("data2vec fairseq", vit_relative, data2vec_fairseq, "data2vec (fairseq)", "trained network", {}, 2 * 2),
    Case(
        "data2vec Hugging Face",
        vit_relative,
        huggingface_data2vec,
        "Hugging Face transformers",
        "the network",
        {"decoder": 1, "indices of offsets": 1, "classifier": 4},
        2 * 3,
    ),
    Case("I-JEPA Hugging Face", vit_patches, huggingface, "Hugging Face transformers", "the network", {}, 2 * 4),
    Case("MSN", vit, msn, "MSN", "target encoder, as in the official evaluation", {}),
    Case(
        "stable-pretraining",
        resnet,
        stable_pretraining,
        "stable-pretraining",
        "backbone",
        {"projector": 2, "classifier": 2, "accuracy": 1, "optimizer": 2},
    ),
    Case(
        "stable-pretraining teacher",
        resnet,
        stable_pretraining_teacher,
        "stable-pretraining",
        "teacher, as in its probes",
        {},
    ),
    Case("mmselfsup MoCo", resnet, mm_moco, "mmselfsup", "backbone", {}),
    Case("mmselfsup BYOL", resnet, mm_byol, "mmselfsup", "backbone", {}),
    Case("mmselfsup ViT", vit, mm_vit, "mmselfsup", "backbone", {"projector": 2}),
    Case("own", resnet, own_run, "own run", "the objective's backbone", {}),
    *(
        Case(prefix, resnet, prefixed(f"{prefix}."), f"state dict below {word}.", word, {"projector": 2})
        for prefix, word in (
            ("backbone", "backbone"),
            ("model", "model"),
            ("encoder", "encoder"),
            ("module.encoder", "encoder"),
            ("_orig_mod.model", "model"),
        )
    ),
    Case("compiled", resnet, compiled, "plain state dict", "the network", {"classifier": 2}),
    Case("torchvision", resnet, bare, "plain state dict", "the network", {"classifier": 2}),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def saved(content: Any, folder: Path, zipped: bool = True) -> Path:
    torch.save(content, folder / "file.pth", _use_new_zipfile_serialization=zipped)
    return folder / "file.pth"


def images(network: Backbone) -> Tensor:
    size = network.image_size or 64
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def check_equal(loaded: Backbone, source: Backbone) -> None:
    wanted = source.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in loaded.state_dict().items())
    assert torch.equal(loaded(images(source)), source(images(source)))


def refusal(path: Path, backbone: Backbone) -> str:
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_backbone(path, backbone)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    message = str(caught.value)
    assert message.startswith(f"checkpoint={path}")
    assert message.isprintable()
    return message


def tensors_of(content: Any, path: str = "") -> dict[str, tuple[dict[str, Any], str]]:
    """Every tensor of a file by its path, as the dictionary it is in and its key there."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    items: Any = (
        content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    )
    for key, value in items:
        whole = f"{path}.{key}" if path else str(key)
        found |= {whole: (content, key)} if isinstance(value, Tensor) else tensors_of(value, whole)
    return found


@each_case
def test_features_are_equal_and_every_tensor_is_accounted_for(case: Case, tmp_path: Path) -> None:
    source = seeded(case.make, 0)
    content = case.write(source.state_dict())
    checkpoint = read_checkpoint(saved(content, tmp_path))
    check_equal(load_backbone(checkpoint, seeded(case.make, 1)).eval(), source)
    assert (checkpoint.layout, checkpoint.part) == (case.layout, case.part)
    taken = len(source.state_dict()) + case.apart
    assert sum(checkpoint.left_out.values()) + taken == len(tensors_of(content))
    assert checkpoint.notes == [
        f"{case.layout} prepares images as views={views} does, not by ImageNet's mean and std"
        for views in ("swav", "simclr")
        if case.layout.lower().startswith(views)
    ]
    if case.left_out:
        assert checkpoint.left_out == case.left_out


@each_case
@pytest.mark.parametrize("change", ["missing", "renamed", "reshaped"])
def test_one_key_that_does_not_fit_is_refused_and_named(case: Case, change: str, tmp_path: Path) -> None:
    source = seeded(case.make, 0)
    marked = {key: value.clone() for key, value in source.state_dict().items()}
    content = case.write(marked)
    ours = next(key for key in marked if key.endswith((".bn2.weight", "norm2.weight", "f.b.1.weight")))
    homes = {id(marked[ours]): ours}
    path, (home, key) = next(
        (path, place) for path, place in tensors_of(content).items() if id(place[0][place[1]]) in homes
    )
    if change == "missing":
        del home[key]
        expected = [f"missing {ours}"]
    elif change == "renamed":
        home[f"{key}s"] = home.pop(key)
        expected = [f"missing {ours}", f"unknown {path}s"]
    else:
        home[key] = torch.rand(5)
        expected = [f"{path} has shape [5] instead of {list(marked[ours].shape)}"]
    message = refusal(saved(content, tmp_path), seeded(case.make, 1))
    assert message.endswith(f"does not fit the backbone: {'; '.join(expected)}")
    assert f"({case.layout})" in message


@each_case
def test_a_tensor_that_nobody_knows_is_refused_and_named(case: Case, tmp_path: Path) -> None:
    content = case.write(seeded(case.make, 0).state_dict())
    content["adapter"] = {"weight": torch.rand(2)}
    message = refusal(saved(content, tmp_path), seeded(case.make, 1))
    assert "unknown adapter.weight" in message


def test_a_layout_that_nobody_knows_is_told_in_five_names_and_a_count(tmp_path: Path) -> None:
    content = {f"tower.part{number}.weight": torch.rand(2) for number in range(300)}
    message = refusal(saved(content, tmp_path), seeded(resnet, 1))
    assert "tower.part4.weight, … (300)" in message
    assert "part5" not in message
    assert "docs/weights.md" in message
    assert len(message) < 500 + len(str(tmp_path))


@pytest.mark.parametrize("zipped", [True, False])
def test_both_formats_of_torch_hold_an_official_file(zipped: bool, tmp_path: Path) -> None:
    source = seeded(vit, 0)
    path = saved(mae(source.state_dict()), tmp_path, zipped)
    check_equal(load_backbone(path, seeded(vit, 1)), source)


def test_a_file_of_safetensors_loads(tmp_path: Path) -> None:
    source = seeded(resnet, 0)
    save_file(bare(source.state_dict()), tmp_path / "weights.safetensors")
    check_equal(load_backbone(tmp_path / "weights.safetensors", seeded(resnet, 1)), source)


def test_one_parts_tensors_are_counted_by_name_in_an_own_run(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(saved(own_run(seeded(resnet, 0).state_dict()), tmp_path))
    load_backbone(checkpoint, seeded(resnet, 1))
    tensors = len(resnet().state_dict())
    assert checkpoint.left_out == {
        "projector": 2,
        "momentum_encoder": tensors,
        "queue": 1,
        "optimizer": 2,
        "state of the run": 1,
    }
    assert checkpoint.config == {"seed": 3}
    assert checkpoint.progress == {"step": 7}


def test_dino_gives_the_teacher_and_moco_the_query_encoder_though_the_other_is_there(tmp_path: Path) -> None:
    source = seeded(vit_learned, 0)
    content = dino("")(source.state_dict())
    student = content["student"]["module.backbone.norm.weight"]
    assert not torch.equal(student, source.state_dict()["norm.weight"])
    loaded = load_backbone(saved(content, tmp_path), seeded(vit_learned, 1))
    assert torch.equal(loaded.state_dict()["norm.weight"], content["teacher"]["backbone.norm.weight"])


def test_dinov2s_registers_and_layer_scales_give_what_a_literal_forward_of_the_file_gives(tmp_path: Path) -> None:
    """models/vision_transformer.py, prepare_tokens_with_masks and forward_features; layers/attention.py, block.py."""
    content = dinov2_released(seeded(vit_registers, 0).state_dict())
    loaded = load_backbone(saved(content, tmp_path), seeded(vit_registers, 1)).double()
    file: dict[str, Tensor] = {key: value.double() for key, value in content.items()}
    pictures = images(loaded).double()

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ file[f"{name}.weight"].T + file[f"{name}.bias"]

    def layer_norm(name: str, x: Tensor) -> Tensor:
        deviation = (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        return (x - x.mean(-1, keepdim=True)) / deviation * file[f"{name}.weight"] + file[f"{name}.bias"]

    projection = file["patch_embed.proj.weight"]
    cut = pictures.reshape(2, 3, 4, 8, 4, 8).permute(0, 2, 4, 1, 3, 5).reshape(2, 16, -1)
    patches = cut @ projection.flatten(1).T + file["patch_embed.proj.bias"]
    x = torch.cat([file["cls_token"].expand(2, -1, -1), patches], 1) + file["pos_embed"]
    x = torch.cat([x[:, :1], file["register_tokens"].expand(2, -1, -1), x[:, 1:]], 1)
    for block in ("blocks.0", "blocks.1"):
        q, k, v = linear(f"{block}.attn.qkv", layer_norm(f"{block}.norm1", x)).chunk(3, -1)
        heads = []
        for head in range(4):
            own = slice(8 * head, 8 * head + 8)
            heads.append((q[..., own] @ k[..., own].mT / 8**0.5).softmax(-1) @ v[..., own])
        x = x + file[f"{block}.ls1.gamma"] * linear(f"{block}.attn.proj", torch.cat(heads, -1))
        hidden = linear(f"{block}.mlp.fc1", layer_norm(f"{block}.norm2", x))
        x = x + file[f"{block}.ls2.gamma"] * linear(f"{block}.mlp.fc2", nn.functional.gelu(hidden))
    with torch.no_grad():
        torch.testing.assert_close(loaded(pictures), layer_norm("norm", x)[:, 0], rtol=0, atol=1e-12)
        patches = loaded.features(pictures, ["tokens"])["tokens"]
        torch.testing.assert_close(patches, layer_norm("norm", x)[:, 4:], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "registers"), [("dinov2", 0), ("reg4_dinov2", 4)])
def test_timms_dinov2_gives_its_features_in_our_vit(name: str, registers: int, tmp_path: Path) -> None:
    """With registers timm has added the class token's position to the token, and its table has no row for it."""
    small = {"img_size": 28, "embed_dim": 32, "depth": 2, "num_heads": 4, "init_values": 0.5, "num_classes": 0}
    theirs = timm.create_model(f"vit_small_patch14_{name}", **small).eval()
    torch.save(theirs.state_dict(), tmp_path / "file.pth")
    kept = {"position": "learned", "layer_scale": 1e-5, "registers": registers}
    ours = load_backbone(tmp_path / "file.pth", ViT(28, 14, 32, 2, 4, **kept)).eval()  # type: ignore[arg-type]
    pictures = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(ours(pictures), theirs(pictures), rtol=1e-5, atol=1e-5)


def test_a_backbone_without_layer_scales_or_registers_is_told_the_keys_to_give(tmp_path: Path) -> None:
    path = saved(dinov2_released(seeded(vit_registers, 0).state_dict()), tmp_path)
    message = refusal(path, seeded(vit_learned, 1))
    assert "give backbone.layer_scale=1e-5" in message
    assert "give backbone.registers, 4 in DINOv2's" in message


def test_ijepas_target_encoder_gives_what_a_literal_forward_of_the_file_gives(tmp_path: Path) -> None:
    """facebookresearch/ijepa, src/models/vision_transformer.py: no class token; features: the mean of the patches."""
    content = ijepa(seeded(vit_patches, 0).state_dict())
    loaded = load_backbone(saved(content, tmp_path), seeded(vit_patches, 1)).double()
    file: dict[str, Tensor] = {
        key.removeprefix("module."): value.double() for key, value in content["target_encoder"].items()
    }
    pictures = images(loaded).double()

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ file[f"{name}.weight"].T + file[f"{name}.bias"]

    def layer_norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / deviation * file[f"{name}.weight"] + file[f"{name}.bias"]

    patches = pictures.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ file["patch_embed.proj.weight"].flatten(1).T + file["patch_embed.proj.bias"] + file["pos_embed"]
    for block in range(2):
        name = f"blocks.{block}"
        mixed = linear(f"{name}.attn.qkv", layer_norm(f"{name}.norm1", x))
        query, key, value = mixed.reshape(2, 16, 3, 4, 8).permute(2, 0, 3, 1, 4)  # [B, heads, 16, 8] each
        weights = (query @ key.transpose(2, 3) / 8**0.5).softmax(3)
        x = x + linear(f"{name}.attn.proj", (weights @ value).transpose(1, 2).flatten(2))
        hidden = nn.functional.gelu(linear(f"{name}.mlp.fc1", layer_norm(f"{name}.norm2", x)))
        x = x + linear(f"{name}.mlp.fc2", hidden)
    with torch.no_grad():
        assert torch.allclose(loaded(pictures), layer_norm("norm", x).mean(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("write", [simmim, data2vec])
def test_beits_networks_give_what_a_literal_forward_of_the_file_gives(
    write: Callable[[State], State], tmp_path: Path
) -> None:
    """microsoft/SimMIM and data2vec_vision, models: a bias for each head and offset, factors, no bias of keys."""
    content = write(seeded(vit_relative, 0).state_dict())
    loaded = load_backbone(saved(content, tmp_path), seeded(vit_relative, 1)).double()
    file: dict[str, Tensor] = {
        key.removeprefix("encoder."): value.double()
        for key, value in content["model"].items()
        if value.is_floating_point() and not key.startswith(("decoder", "lm_head"))
    }
    pictures = images(loaded).double()
    patches = pictures.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ file["patch_embed.proj.weight"].flatten(1).T + file["patch_embed.proj.bias"]
    x = torch.cat([file["cls_token"].expand(2, -1, -1), x], 1)
    offsets = [[49 + 2 * (a == 0) * (b == 0) + (a > 0) if 0 in (a, b) else 0 for b in range(17)] for a in range(17)]
    for a in range(16):
        for b in range(16):
            offsets[a + 1][b + 1] = 7 * (a // 4 - b // 4 + 3) + a % 4 - b % 4 + 3
    bias = file["rel_pos_bias.relative_position_bias_table"][torch.tensor(offsets)].permute(2, 0, 1)
    for name in ("blocks.0", "blocks.1"):
        y = nn.functional.layer_norm(x, (32,), file[f"{name}.norm1.weight"], file[f"{name}.norm1.bias"], 1e-6)
        query, key, value = (y @ file[f"{name}.attn.qkv.weight"].T).chunk(3, 2)
        query, value = query + file[f"{name}.attn.q_bias"], value + file[f"{name}.attn.v_bias"]
        query, key, value = (each.reshape(2, 17, 4, 8).transpose(1, 2) for each in (query, key, value))
        weights = (query @ key.transpose(2, 3) / 8**0.5 + bias).softmax(3)
        mixed = (weights @ value).transpose(1, 2).flatten(2) @ file[f"{name}.attn.proj.weight"].T
        x = x + file[f"{name}.gamma_1"] * (mixed + file[f"{name}.attn.proj.bias"])
        y = nn.functional.layer_norm(x, (32,), file[f"{name}.norm2.weight"], file[f"{name}.norm2.bias"], 1e-6)
        y = nn.functional.gelu(y @ file[f"{name}.mlp.fc1.weight"].T + file[f"{name}.mlp.fc1.bias"])
        x = x + file[f"{name}.gamma_2"] * (y @ file[f"{name}.mlp.fc2.weight"].T + file[f"{name}.mlp.fc2.bias"])
    x = nn.functional.layer_norm(x, (32,), file["norm.weight"], file["norm.bias"], 1e-6)
    with torch.no_grad():
        assert torch.allclose(loaded(pictures), x[:, 0], rtol=0, atol=1e-12)


def test_queries_without_their_values_are_refused_and_named(tmp_path: Path) -> None:
    content = simmim(seeded(vit_relative, 0).state_dict())
    del content["model"]["encoder.blocks.1.attn.v_bias"]
    message = refusal(saved(content, tmp_path), seeded(vit_relative, 1))
    assert "missing blocks.1.attn.qkv.bias" in message
    assert "unknown model.encoder.blocks.1.attn.q_bias" in message


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    state = seeded(resnet, 0).state_dict()
    content = {"state_dict": state | {"module.conv1.weight": torch.zeros_like(state["conv1.weight"])}}
    assert "state_dict.module.conv1.weight a second time" in refusal(saved(content, tmp_path), seeded(resnet, 1))


def test_counters_of_batches_may_all_be_missing_and_that_is_noted(tmp_path: Path) -> None:
    """torchvision's files from before they existed, and apex."""
    source = seeded(resnet, 0)
    state = {key: value for key, value in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    checkpoint = read_checkpoint(saved(bare(state), tmp_path))
    loaded = load_backbone(checkpoint, seeded(resnet, 1)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images(source)), source(images(source)))
    assert checkpoint.notes == ["num_batches_tracked of 12 BatchNorms is not in the file and was set to 0"]


def test_one_counter_missing_among_others_is_refused(tmp_path: Path) -> None:
    state = seeded(resnet, 0).state_dict()
    del state["bn1.num_batches_tracked"]
    assert "missing bn1.num_batches_tracked" in refusal(saved(bare(state), tmp_path), seeded(resnet, 1))


# ---- other libraries


def test_timms_vit_loads_here_and_its_classifier_is_left_out(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2).eval()
    checkpoint = read_checkpoint(saved(theirs.state_dict(), tmp_path))
    ours = load_backbone(checkpoint, ViT(32, 8, width=192, depth=2, heads=3, position="learned")).eval()
    with torch.no_grad():
        expected = theirs.forward_head(theirs.forward_features(images(ours)), pre_logits=True)
        assert torch.allclose(ours(images(ours)), expected, rtol=0, atol=1e-5)
    assert (checkpoint.left_out, checkpoint.notes) == ({"classifier": 2}, [])


@torch.no_grad()
def test_torchvisions_networks_load_into_their_backbone(tmp_path: Path) -> None:
    for name in ("mobilenet_v3_small", "resnet18"):
        theirs = torchvision.models.get_model(name, weights=None).eval()
        checkpoint = read_checkpoint(saved(theirs.state_dict(), tmp_path))
        ours = load_backbone(checkpoint, TorchvisionBackbone(name)).eval()
        last = [module for module in theirs.modules() if isinstance(module, nn.Linear)][-1]
        assert torch.equal(last(ours(images(ours))), theirs(images(ours)))
        assert checkpoint.left_out == {"classifier": 2}


@torch.no_grad()
def test_timms_networks_load_into_their_backbone(tmp_path: Path) -> None:
    theirs = timm.create_model("convnext_atto").eval()  # has a norm in head, which is of the features
    checkpoint = read_checkpoint(saved({"state_dict": theirs.state_dict()}, tmp_path))
    ours = load_backbone(checkpoint, TimmBackbone("convnext_atto")).eval()
    expected = theirs.forward_head(theirs.forward_features(images(ours)), pre_logits=True)
    assert torch.equal(ours(images(ours)), expected)
    assert checkpoint.left_out == {"classifier": 2}


@torch.no_grad()
def test_timms_regnety_loads_here_and_ours_and_vissls_in_timms(tmp_path: Path) -> None:
    def ours() -> Backbone:
        return RegNetY(depth=16, w_0=48, w_a=27.89, w_m=2.09, group_width=8)

    theirs = timm.create_model("regnety_004").eval()
    loaded = load_backbone(saved(theirs.state_dict(), tmp_path), ours()).eval()
    expected = theirs.forward_head(theirs.forward_features(images(loaded)), pre_logits=True)
    assert torch.allclose(loaded(images(loaded)), expected, rtol=0, atol=1e-5)
    source = seeded(ours, 0)
    for content in (dict(source.state_dict()), seer(source.state_dict())):
        there = load_backbone(saved(content, tmp_path), TimmBackbone("regnety_004")).eval()
        assert torch.allclose(there(images(source)), source(images(source)), rtol=0, atol=1e-5)


# ---- geometry that weights do not show


def test_another_grid_is_refused_with_its_image_size(tmp_path: Path) -> None:
    path = saved(mae(vit().state_dict()), tmp_path)
    message = refusal(path, ViT(64, 8, width=32, depth=2, heads=4))
    assert "model.pos_embed has shape [1, 17, 32] instead of [1, 65, 32]" in message
    assert message.endswith("; give backbone.image_size=32")


def test_another_patch_size_is_refused_with_the_files(tmp_path: Path) -> None:
    path = saved(mae_released(vit().state_dict()), tmp_path)
    assert "; give backbone.patch_size=8" in refusal(path, ViT(32, 16, width=32, depth=2, heads=4))


def test_another_stem_is_refused_with_the_files(tmp_path: Path) -> None:
    small, large = ResNet(10, 0.125, "cifar"), ResNet(10, 0.125, "imagenet")
    assert refusal(saved(bare(small.state_dict()), tmp_path), large).endswith("; give backbone.stem=cifar")
    assert refusal(saved(moco_v2(large.state_dict()), tmp_path), small).endswith("; give backbone.stem=imagenet")


def test_solo_learns_stem_for_small_images_is_refused_for_its_padding(tmp_path: Path) -> None:
    def small() -> Backbone:
        return ResNet(10, 0.125, "cifar")

    assert "solo-learn's stem for small images pads by 2" in refusal(
        saved(solo(small().state_dict()), tmp_path), small()
    )


@pytest.mark.parametrize(
    ("make", "write", "kind"),
    [
        (vit_moco_v3, moco_v3("head"), "sincos_rows_first"),
        (vit_moco_v3, deit, "sincos_rows_first"),
        (vit_learned, dino(""), "learned"),
    ],
)
def test_another_table_of_positions_is_refused_with_the_files(
    make: Callable[[], Backbone], write: Callable[[State], State], kind: str, tmp_path: Path
) -> None:
    path = saved(write(seeded(make, 0).state_dict()), tmp_path)
    assert refusal(path, vit()).endswith(f"give backbone.position={kind}")
    rows_first = vit_moco_v3() if kind == "learned" else vit()
    assert refusal(path, rows_first).endswith(f"give backbone.position={kind}")


@pytest.mark.parametrize(("shift", "loads"), [(5e-6, True), (5e-5, False)])
def test_a_fixed_table_may_differ_by_what_float32_angles_make_and_no_more(
    shift: float, loads: bool, tmp_path: Path
) -> None:
    state = vit().state_dict()
    state["pos_embed"] = sincos_position(32, 4) + shift
    path = saved(mae(state), tmp_path)
    if loads:
        load_backbone(path, vit())
    else:
        assert "its pos_embed is not the table of this backbone" in refusal(path, vit())


def test_a_table_of_positions_that_is_missing_is_refused_even_where_it_is_fixed(tmp_path: Path) -> None:
    state = vit().state_dict()
    del state["pos_embed"]
    assert "missing pos_embed" in refusal(saved(mae_released(state), tmp_path), vit())


def wide(heads: int, position: Any) -> ViT:
    return ViT(16, 8, width=384, depth=1, heads=heads, position=position)


def test_moco_v3s_small_vit_has_twelve_heads_and_dinos_six_and_neither_loads_in_the_others(tmp_path: Path) -> None:
    path = saved(moco_v3("head")(wide(12, "sincos_rows_first").state_dict()), tmp_path)
    load_backbone(path, wide(12, "sincos_rows_first"))
    message = refusal(path, wide(6, "sincos_rows_first"))
    assert message.endswith(
        "backbone.heads=6, but the published network of width 384 has 12, which weights do not show: "
        "give backbone.heads=12"
    )
    path = saved(dino("")(wide(6, "learned").state_dict()), tmp_path)
    load_backbone(path, wide(6, "learned"))
    assert refusal(path, wide(12, "learned")).endswith("give backbone.heads=6")


def test_a_file_that_does_not_say_whose_it_is_gets_a_note_on_heads(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(saved(headless(wide(12, "learned").state_dict()), tmp_path))
    load_backbone(checkpoint, wide(12, "learned"))
    assert checkpoint.notes == [
        "backbone.heads=12, but the published network of width 384 has 6; the file does not say it"
    ]


@pytest.mark.parametrize(
    ("own", "asked", "problem"),
    [
        ({"pooling": "cls"}, {"pooling": "gap"}, "backbone.pooling=gap, but the run was made with cls"),
        ({"heads": 4}, {"heads": 2}, "backbone.heads=2, but the run was made with 4"),
    ],
)
def test_a_network_that_differs_from_the_runs_is_refused_though_its_weights_fit(
    own: State, asked: State, problem: str, tmp_path: Path
) -> None:
    settings = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 4, "pooling": "cls"}
    content = own_run(ViT(**{**settings, **own}).state_dict()) | {"config": {"backbone": {**settings, **own}}}
    path = saved(content, tmp_path)
    load_backbone(path, ViT(**{**settings, **own}))
    assert refusal(path, ViT(**{**settings, **asked})).endswith(problem)


@pytest.mark.parametrize(("own", "asked"), [(None, 2), (2, None), (2, 1)])
def test_another_max_pool_than_the_runs_is_refused_though_its_weights_fit(
    own: int | None, asked: int | None, tmp_path: Path
) -> None:
    networks = [ResNet(10, 0.125, "cifar", pool=pool) for pool in (own, asked)]
    settings = {"depth": 10, "width": 0.125, "stem": "cifar"} | ({} if own is None else {"pool": own})
    path = saved(own_run(networks[0].state_dict()) | {"config": {"backbone": settings}}, tmp_path)
    load_backbone(path, networks[0])
    assert refusal(path, networks[1]).endswith(f"backbone.pool={asked}, but the run was made with {own}")


def test_a_configuration_that_is_not_the_runs_is_refused_in_one_line_and_what_changes_no_number_is_not(
    tmp_path: Path,
) -> None:
    settings = {"_target_": "unlabeled.backbones.resnet.ResNet", "depth": 10, "stem": "cifar", "initialisation": "mae"}
    content = own_run(seeded(resnet, 0).state_dict()) | {"config": {"backbone": settings}}
    checkpoint = read_checkpoint(saved(content, tmp_path))
    check_same_backbone(checkpoint, settings | {"initialisation": "moco_v3", "gradient_checkpointing": True})
    with pytest.raises(UserError) as caught:
        check_same_backbone(checkpoint, settings | {"depth": 18, "stem": "imagenet"})
    assert str(caught.value) == (
        f"checkpoint={tmp_path}/file.pth was made with another backbone: backbone.depth=18 instead of 10, "
        "backbone.stem=imagenet instead of cifar; leave backbone out"
    )
    foreign = read_checkpoint(saved(bare(seeded(resnet, 0).state_dict()), tmp_path))
    check_same_backbone(foreign, settings)


class Wrapping(Backbone):
    """Has a part that is called as wrappers call theirs."""

    num_features = 2

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)


def test_a_part_of_a_backbone_may_be_called_module(tmp_path: Path) -> None:
    source = Wrapping()
    loaded = load_backbone(saved(own_run(source.state_dict()), tmp_path), Wrapping())
    assert torch.equal(loaded.state_dict()["module.weight"], source.state_dict()["module.weight"])


def test_maes_fine_tuned_networks_are_refused_with_the_reason(tmp_path: Path) -> None:
    state = vit().state_dict()
    state |= {"fc_norm.weight": state.pop("norm.weight"), "fc_norm.bias": state.pop("norm.bias")}
    message = refusal(saved({"model": state | linear("head", 32, 10)}, tmp_path), vit())
    assert "missing norm.weight" in message
    assert "it averages patches before its last norm (fc_norm)" in message


def test_selective_kernels_of_simclr_v2_are_refused_with_the_reason(tmp_path: Path) -> None:
    content = simclr_v2(bottlenecks().state_dict())
    content["resnet"] |= {"net.1.blocks.0.net.2.mixing_conv.0.weight": torch.rand(2)}
    assert "it has selective kernels (SimCLR v2's sk1)" in refusal(saved(content, tmp_path), bottlenecks())


def test_figures_and_settings_of_an_official_file_do_not_stop_it(tmp_path: Path) -> None:
    source = seeded(resnet, 0)
    content = moco_v2(source.state_dict()) | {"best_acc1": np.float64(71.1), "args": argparse.Namespace(lr=0.03)}
    checkpoint: Checkpoint = read_checkpoint(saved(content, tmp_path))
    check_equal(load_backbone(checkpoint, seeded(resnet, 1)).eval(), source)
