"""A convolutional network with a finer last map: its last stage is dilated in place of its stride.

MoCo (arXiv:1911.05722, appendix A.4): the 3 × 3 convolutions of ResNet's last stage have dilation 2 and stride 1, so
that the map is a sixteenth of the image; two 3 × 3 convolutions of dilation 6 with 256 channels follow.
"""

import copy

from torch import nn

from unlabeled.backbones.padding import EndPaddedConv
from unlabeled.errors import UserError
from unlabeled.objective import Backbone

STAGES = ("layer4", "block3", "model.layer4", "model.s4")  # names of the last stage
TRUNKS = ("trunk_output", "model.trunk_output")  # or of all stages, RegNets'
HEAD_CHANNELS = 256
HEAD_DILATION = 6


def dilated(backbone: Backbone, key: str) -> Backbone:
    """Returns a copy with the same weights whose last map is twice as fine.

    Known are ResNets, RegNets and wide ResNets of this project, and those of torchvision and timm.

    Raises:
        UserError: another network; the message begins with ``key``.
    """
    network = copy.deepcopy(backbone)
    stage = _last_stage(network)
    reducing = [] if stage is None else [each for each in stage.modules() if _reduces(each)]
    if stage is None or not reducing or not all(isinstance(each, nn.Conv2d) for each in reducing):
        raise UserError(f"{key}: {type(backbone).__name__} has no last stage of convolutions with a stride; {ALLOWED}")
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            _dilate(module)
    return network


def _last_stage(network: nn.Module) -> nn.Module | None:
    parts = dict(network.named_modules())
    found = [parts[name] for name in STAGES if name in parts]
    found += [list(parts[name].children())[-1] for name in TRUNKS if name in parts]
    return found[0] if found else None


ALLOWED = "known are ResNets, RegNets and wide ResNets, and fine-tuning knows the ViTs of this project and of timm"


def _reduces(module: nn.Module) -> bool:
    """Returns whether a convolution or a pool has a stride; blocks of torchvision have an attribute of that name."""
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return False
    return (module.stride if isinstance(module.stride, int) else max(module.stride)) > 1


def _dilate(module: nn.Conv2d) -> None:
    """Makes a 3 × 3 convolution dilated; the stride of every one goes."""
    if isinstance(module, EndPaddedConv):  # its padding is for a stride
        module.__class__ = nn.Conv2d  # type: ignore[assignment]
    module.stride = (1, 1)
    if module.kernel_size[0] > 1:
        module.dilation, module.padding = (2, 2), (module.kernel_size[0] - 1,) * 2


class DilatedHead(nn.Sequential):
    """Maps the map of a dilated network [B, width, h, w] to logits [B, classes, h, w], as in MoCo's FCN."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(*_convolution(width), *_convolution(HEAD_CHANNELS), nn.Conv2d(HEAD_CHANNELS, classes, 1))


def _convolution(width: int) -> list[nn.Module]:
    d = HEAD_DILATION
    return [
        nn.Conv2d(width, HEAD_CHANNELS, 3, padding=d, dilation=d, bias=False),
        nn.BatchNorm2d(HEAD_CHANNELS),
        nn.ReLU(inplace=True),
    ]
