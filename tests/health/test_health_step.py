"""What a step tells of its health, against loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.health.step import StepHealth, image_metrics
from unlabeled.objective import Backbone, Batch, Objective, Output


class Linear(Backbone):
    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images)  # type: ignore[no-any-return]


class Toy(Objective):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.projector = Linear(), nn.Linear(4, 3)
        self.teacher = Linear()

    def teacher_student_pairs(self) -> tuple[tuple[nn.Module, nn.Module], ...]:
        return ((self.teacher, self.backbone),)


def batch_of(images: Tensor, ids: Tensor) -> Batch:
    return Batch(images, ids, torch.zeros(len(images), dtype=torch.long))


def looked_at(normalise: bool) -> tuple[Toy, StepHealth, dict[str, Tensor]]:
    """One step of plain gradient descent, and the weights before it."""
    torch.manual_seed(0)
    toy = Toy().double()
    toy.teacher.requires_grad_(False)
    before = {name: value.clone() for name, value in toy.state_dict().items()}
    health = StepHealth(toy)
    z = toy.projector(toy.backbone(torch.randn(8, 6, dtype=torch.float64)))
    used = F.normalize(z, dim=1) if normalise else z
    loss = -(used @ torch.randn(3, dtype=torch.float64)).mean()
    images = torch.randint(256, (8, 3, 2, 2), dtype=torch.uint8)
    health.output(batch_of(images, torch.randperm(8)), Output(loss, z.detach(), embeddings=z, targets=z.detach()))
    loss.backward()
    health.gradients()
    with torch.no_grad():
        for parameter in toy.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
    health.update()
    return toy, health, before


def test_the_gradient_is_at_right_angles_to_embeddings_that_are_normalised_and_not_to_others() -> None:
    assert float(looked_at(True)[1].found["radial_gradient"]) < 1e-7
    assert float(looked_at(False)[1].found["radial_gradient"]) > 0.1


def test_lengths_of_gradients_updates_and_the_teachers_distance_are_those_of_a_loop() -> None:
    toy, health, before = looked_at(True)
    for part, module in (("backbone", toy.backbone), ("projector", toy.projector)):
        squares = sum(float(p.grad.square().sum()) for p in module.parameters() if p.grad is not None)
        assert float(health.found[f"gradient_norm/{part}"]) == pytest.approx(math.sqrt(squares), rel=1e-12)
        matrix = "layer.weight" if part == "backbone" else "weight"
        now, old = module.state_dict()[matrix], before[f"{part}.{matrix}"]
        assert float(health.found[f"update_ratio/{part}"]) == pytest.approx(float((now - old).norm() / old.norm()))
    fast, slow = toy.backbone.state_dict(), toy.teacher.state_dict()
    apart = math.sqrt(sum(float((fast[name] - slow[name]).square().sum()) for name in fast))
    length = math.sqrt(sum(float(value.square().sum()) for value in fast.values()))
    assert float(health.found["teacher_distance"]) == pytest.approx(apart / length, rel=1e-12)
    assert "gradient_norm/teacher" not in health.found


def test_the_spread_of_embeddings_is_one_where_even_and_zero_where_all_are_equal() -> None:
    health, images = StepHealth(Toy()), torch.zeros(4096, 3, 1, 1, dtype=torch.uint8)
    ids = torch.arange(4096)
    for z, expected in ((torch.randn(4096, 64), 1.0), (torch.ones(4096, 64), 0.0)):
        health.output(batch_of(images, ids), Output(torch.zeros(()), z, embeddings=z))
        assert float(health.found["embedding_std"]) == pytest.approx(expected, abs=0.01)


def test_images_that_are_equal_flat_or_in_the_order_of_their_source_show_it() -> None:
    noise = torch.randint(256, (64, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    uniform = math.sqrt((256**2 - 1) / 12) / 255  # standard deviation of a whole number from 0 to 255
    found = image_metrics(batch_of(noise, torch.randperm(64, generator=torch.Generator().manual_seed(0))))
    assert float(found["image_difference"]) == pytest.approx(uniform, rel=0.02)
    assert float(found["pixel_variation"]) == pytest.approx(uniform, rel=0.02)
    assert float(found["neighbours"]) <= 2 / 63
    same = image_metrics(batch_of(noise[:1].expand(64, -1, -1, -1), torch.arange(10, 74)))
    assert float(same["image_difference"]) == 0
    assert float(same["neighbours"]) == 1
    grey = noise[:, :1, :1, :1].expand(-1, 3, 8, 8)
    assert float(image_metrics(batch_of(grey, torch.arange(64)))["pixel_variation"]) == pytest.approx(0, abs=1e-6)


def test_what_is_beside_smaller_images_on_their_canvas_is_no_content() -> None:
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    sizes = torch.tensor([[8, 8], [4, 6], [6, 4]])
    for image, (height, width) in zip(images, sizes.tolist(), strict=True):
        image[:, :height, :width] = 128
    found = image_metrics(Batch(images, torch.arange(3), torch.zeros(3, dtype=torch.long), sizes=sizes))
    assert float(found["image_difference"]) == float(found["pixel_variation"]) == 0
