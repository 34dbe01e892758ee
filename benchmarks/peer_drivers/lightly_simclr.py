"""lightly: the SimCLR of its examples/pytorch_lightning, its views (torchvision v2 on PIL images), loss and k-NN."""

from typing import Any

import pytorch_lightning as pl
import torch
from lightly.data import LightlyDataset
from lightly.data.multi_view_collate import MultiViewCollate
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.peer_drivers import harness
from benchmarks.peer_drivers.harness import Job

QUERIES = 500  # at a time: of 100, 250, 500 and 1000 the fastest, by a few per cent


class SimCLR(pl.LightningModule):
    def __init__(self, part: str) -> None:
        super().__init__()
        self.backbone = harness.backbone(part)
        width = self.backbone.num_features
        self.projection_head = SimCLRProjectionHead(width, width, harness.PROJECTION)
        self.criterion = NTXentLoss(temperature=harness.TEMPERATURE)

    def forward(self, x: Tensor) -> Any:
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    def training_step(self, batch: Any, batch_index: int) -> Any:
        (x0, x1), _, _ = batch
        return self.criterion(self.forward(x0), self.forward(x1))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=harness.LR, momentum=harness.MOMENTUM)


def pretrain(job: Job) -> None:
    # The crop is bilinear: lightly's transform has no other.
    transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0, normalize=None)
    if job.part == "first_step":
        dataset = LightlyDataset(f"{job.data}/folder", transform=transform)
    else:
        dataset = LightlyDataset.from_torch_dataset(harness.cifar10(job.data), transform=transform)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=harness.BATCH_SIZE,
        collate_fn=MultiViewCollate(),
        shuffle=True,
        drop_last=True,
        num_workers=job.workers,
    )
    harness.fit(pl, job, SimCLR(job.part), loader)


def knn(job: Job) -> dict[str, float]:
    from lightly.utils.benchmarking import knn_predict

    bank, labels, queries, _ = harness.features(job)

    def predict(queries: Tensor) -> Tensor:
        columns = normalize(bank).T.contiguous()
        parts = torch.split(normalize(queries), QUERIES)
        return torch.cat([knn_predict(part, columns, labels, job.classes, 20, 0.1)[:, 0] for part in parts])

    predict(queries[:QUERIES])
    seconds, predictions = harness.timed(lambda: predict(queries))
    torch.save(predictions, job.out)
    return {"knn": seconds}


def linear(job: Job) -> dict[str, float]:
    from lightly.utils.benchmarking import LinearClassifier

    bank, labels, _, _ = harness.features(job)
    module = LinearClassifier(nn.Identity(), harness.BATCH_SIZE, harness.HEAD_RATE, bank.shape[1], job.classes)
    return harness.fit_head(pl, job, module, torch.utils.data.TensorDataset(bank, labels))


if __name__ == "__main__":
    harness.run({"pretrain": pretrain, "knn": knn, "linear": linear})
