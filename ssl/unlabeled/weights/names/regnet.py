"""Translates names of RegNetY's tensors to other libraries and back: the same network has four sets of names.

Our names are torchvision's. timm's and VISSL's were taken from rwightman/pytorch-image-models ``regnet.py`` and
facebookresearch/ClassyVision ``anynet.py`` (whose blocks facebookresearch/vissl ``trunks/regnet.py`` and
``regnet_fsdp.py`` put into ``_feature_blocks``). Shapes are equal in all four; only the names differ.
"""

import re
from collections.abc import Mapping

from torch import Tensor

# Parts of a block: ours and torchvision's, timm's, ClassyVision's and VISSL's.
_PARTS = (
    ("f.a.0", "conv1.conv", "f.a.0"),
    ("f.a.1", "conv1.bn", "f.a.1"),
    ("f.b.0", "conv2.conv", "f.b.0"),
    ("f.b.1", "conv2.bn", "f.b.1"),
    ("f.se.fc1", "se.fc1", "f.se.excitation.0"),
    ("f.se.fc2", "se.fc2", "f.se.excitation.2"),
    ("f.c.0", "conv3.conv", "f.c"),
    ("f.c.1", "conv3.bn", "f.final_bn"),
    ("proj.0", "downsample.conv", "proj"),
    ("proj.1", "downsample.bn", "bn"),
)
_OURS_TO_TIMM = {ours: timm for ours, timm, _ in _PARTS} | {"0": "conv", "1": "bn"}
_TIMM_TO_OURS = {timm: ours for ours, timm, _ in _PARTS} | {"conv": "0", "bn": "1"}
_CLASSY_TO_OURS = {classy: ours for ours, _, classy in _PARTS} | {"0": "0", "1": "1"}

_OURS_STEM = re.compile(r"stem\.(?P<part>[01])\.(?P<tensor>\w+)")
_OURS = re.compile(r"trunk_output\.block(?P<stage>\d+)\.block(?P=stage)-(?P<block>\d+)\.(?P<part>.+)\.(?P<tensor>\w+)")
_TIMM_STEM = re.compile(r"stem\.(?P<part>conv|bn)\.(?P<tensor>\w+)")
_TIMM = re.compile(r"s(?P<stage>\d+)\.b(?P<block>\d+)\.(?P<part>.+)\.(?P<tensor>\w+)")
# VISSL counts the stem as the first stage (res2 is stage 1). Its second RegNet groups blocks for gradient
# checkpointing (block3-part1).
_CLASSY_STEM = re.compile(r"(?:_feature_blocks\.conv1|stem)\.stem\.(?P<part>[01])\.(?P<tensor>\w+)")
_CLASSY = re.compile(
    r"(?:_feature_blocks\.res\d+|trunk_output\.block\d+)\.(?:block\d+-part\d+\.)?"
    r"block(?P<stage>\d+)-(?P<block>\d+)\.(?P<part>.+)\.(?P<tensor>\w+)"
)


def to_timm(name: str) -> str | None:
    """Returns a tensor's name in timm's ``regnety_*`` from ours (torchvision's), or None if it is not of a RegNetY."""
    if found := _OURS_STEM.fullmatch(name):
        return f"stem.{_OURS_TO_TIMM[found['part']]}.{found['tensor']}"
    found = _OURS.fullmatch(name)
    if found is None or found["part"] not in _OURS_TO_TIMM:
        return None
    return f"s{found['stage']}.b{int(found['block']) + 1}.{_OURS_TO_TIMM[found['part']]}.{found['tensor']}"


def from_timm(name: str) -> str | None:
    """Returns our (torchvision's) name of a tensor from timm's, or None, as for the classifier ``head.fc``."""
    if found := _TIMM_STEM.fullmatch(name):
        return f"stem.{_TIMM_TO_OURS[found['part']]}.{found['tensor']}"
    found = _TIMM.fullmatch(name)
    if found is None or found["part"] not in _TIMM_TO_OURS:
        return None
    return _block(found["stage"], int(found["block"]) - 1, _TIMM_TO_OURS[found["part"]], found["tensor"])


def from_vissl(name: str) -> str | None:
    """Returns our name of a tensor from VISSL's (below ``trunk``) or ClassyVision's, or None, as for ``heads``."""
    if found := _CLASSY_STEM.fullmatch(name):
        return f"stem.{found['part']}.{found['tensor']}"
    found = _CLASSY.fullmatch(name)
    if found is None or found["part"] not in _CLASSY_TO_OURS:
        return None
    return _block(found["stage"], int(found["block"]), _CLASSY_TO_OURS[found["part"]], found["tensor"])


def renamed_to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the whole state dict of our RegNetY under timm's names.

    Raises:
        ValueError: a name that RegNetY does not have, which is a bug in our network.
    """
    names = {name: to_timm(name) for name in state}
    if unknown := [name for name, theirs in names.items() if theirs is None]:
        raise ValueError(f"no tensors of a RegNetY: {', '.join(unknown)}")
    return {str(names[name]): value for name, value in state.items()}


def _block(stage: str, block: int, part: str, tensor: str) -> str:
    return f"trunk_output.block{stage}.block{stage}-{block}.{part}.{tensor}"
