"""Several processes look at the images together and each gets what one alone would."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import ENVIRONMENT, ROOT, Script
from tests.forked import spawn
from tests.group import leave
from tests.small import composed
from unlabeled.backbones.resnet import ResNet
from unlabeled.commands.build.network import build_backbone
from unlabeled.data.module import DataModule
from unlabeled.data.sources.digits import digits
from unlabeled.data.sources.folder import folder as read_folder
from unlabeled.distributed import gather_rows, local_only, rank, world_size
from unlabeled.errors import UserError
from unlabeled.evaluation.cache import TensorCache
from unlabeled.evaluation.extractor import Extractor
from unlabeled.evaluation.features import PixelNetwork
from unlabeled.views.pipeline import Views

KINDS = ("last", "last4")
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")


def extractor(cache: TensorCache | None = None, batch_size: int = 50) -> Extractor:
    splits = digits()
    splits.train.labels[::3] = -1
    views = Views(8, [], None, None, 1.0, "bilinear")
    return Extractor(DataModule(splits, 64, 0, 8, 0), views, torch.device("cpu"), "32-true", batch_size, cache)


def network() -> ResNet:
    torch.manual_seed(0)
    return ResNet(10, 0.125, "cifar")


def member(number: int, processes: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=number, world_size=processes)
    expected = torch.load(f"{folder}/expected.pt")
    cache = TensorCache(f"{folder}/kept", 1)
    for batch_size in (50, 400):  # the second leaves a process without a test batch
        look = extractor(None if batch_size == 50 else cache, batch_size)
        for split, (x, last4, labels, ids) in expected.items():
            found = look(network(), split, KINDS)
            assert torch.equal(found.ids, ids)
            assert torch.equal(found.labels, labels)
            torch.testing.assert_close(found.x, x, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found.others["last4"], last4, rtol=1e-5, atol=1e-6)
    rows = gather_rows(torch.full((number, 2), number))
    assert rows.tolist() == [[each, each] for each in range(processes) for _ in range(each)]
    with local_only():
        assert (rank(), world_size()) == (0, 1)
        assert torch.equal(gather_rows(torch.ones(1)), torch.ones(1))
    assert (rank(), world_size()) == (number, processes)
    leave()


@pytest.mark.parametrize("processes", [2, 3])
def test_features_are_those_of_one_process_in_dataset_order_each_image_once(processes: int, tmp_path: Path) -> None:
    look = extractor()
    found = {split: look(network(), split, KINDS) for split in ("train", "test")}
    assert found["train"].ids.tolist() == [row for row in range(1347) if row % 3]
    columns = {split: (each.x, each.others["last4"], each.labels, each.ids) for split, each in found.items()}
    torch.save(columns, tmp_path / "expected.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(member, (processes, port, str(tmp_path)), processes)
    assert len(list((tmp_path / "kept").iterdir())) == 4


def test_an_evaluation_by_two_processes_gives_the_numbers_of_one_and_one_report(script: Script, tmp_path: Path) -> None:
    chosen = ["data=digits", "backbone=resnet_thin", "backbone.width=0.125", "views=simclr_small", "views.size=8"]
    torch.save(build_backbone(composed(*chosen).backbone, 0).state_dict(), tmp_path / "weights.pt")
    given = [f"checkpoint={tmp_path}/weights.pt", *chosen, "cache_gib=0", "accelerator=cpu"]
    alone = script("eval_linear.py", *given, f"report_dir={tmp_path}/1")
    together = subprocess.run(
        [sys.executable, "-m", *TORCHRUN, str(ROOT / "eval_linear.py"), *given, f"report_dir={tmp_path}/2"],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    for finished in (alone, together):
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.count("the whole report is in") == 1
    one, two = (json.loads((tmp_path / number / "results.json").read_text()) for number in "12")
    assert [(row["protocol"], row["top1"]) for row in one["rows"]] == [
        (row["protocol"], row["top1"]) for row in two["rows"]
    ]
    assert two["provenance"]["machine"]["processes"] == 2
    assert sorted(each["images"] for each in two["provenance"]["images_read"]) == [450] * 3 + [1347] * 3


def damaged(folder: Path, broken: Sequence[int]) -> Extractor:
    """Five images of two classes; those of the given numbers cannot be decoded."""
    for number in range(5):
        path = folder / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(path)
        if number in broken:
            path.write_bytes(b"no image")
    views = Views(8, [], None, None, 1.0, "bilinear")
    data = DataModule(read_folder(str(folder), image_size=8), 4, 0, 0, 0)
    return Extractor(data, views, torch.device("cpu"), "32-true", 2)


def share(number: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=number, world_size=2)
    look = damaged(Path(folder) / str(number), (1, 3, 4))
    wanted = look.data.splits.train
    found = look(PixelNetwork(), "train")
    names = [wanted.name(id) for id in found.ids.tolist()]
    listed = [name.partition(": ")[0] for name in look.data.corrupt]
    Path(folder, f"{number}.json").write_text(json.dumps([[Path(n).name for n in each] for each in (names, listed)]))
    leave()


def test_a_process_whose_images_are_all_damaged_takes_part_and_all_know_what_is_damaged(tmp_path: Path) -> None:
    """In the folder's order the images are 0, 2, 4, 1, 3: batches of two for the processes 0, 1 and 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(share, (port, str(tmp_path)), 2)
    found = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2)]
    assert [names for names, _ in found] == [["0.png", "2.png"]] * 2
    assert [sorted(listed) for _, listed in found] == [["1.png", "3.png", "4.png"]] * 2


def test_where_no_image_of_a_split_can_be_decoded_it_is_said_in_one_line(tmp_path: Path) -> None:
    look = damaged(tmp_path, (1, 3))  # the images of the second class; those of the first have no label
    look.data.splits.train.labels[:3] = -1
    with pytest.raises(UserError, match="data: no image of train that is wanted can be decoded"):
        look(PixelNetwork(), "train")
