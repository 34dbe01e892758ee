"""Progressive resizing: small crops at the start of a run, the same boxes in fewer pixels."""

from pathlib import Path

import pytest
import torch

from tests.faulty import config_of as faulty_config
from tests.faulty import run_of, spoil
from tests.small import small_run
from tests.training.test_resume import config_of, run_to_the_end
from tests.views.test_pipeline import MEAN, STD, equal, pipeline, small, uint8_images
from unlabeled.commands.build.run import build_replay, build_run
from unlabeled.commands.checks.former_run import open_run
from unlabeled.errors import UserError
from unlabeled.objectives.simclr import SimCLR
from unlabeled.views.cutout import Cutout
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import RandomResizedCrop
from unlabeled.views.padded_crop import RandomCrop
from unlabeled.views.pipeline import ViewGroup, Views
from unlabeled.views.progressive import ProgressiveViews, resized

SIZES = "progressive_resizing=[[0,8],[0.5,12],[0.75,16]]"


def test_smaller_views_are_those_of_a_pipeline_that_is_built_so_small() -> None:
    images, ids, key = uint8_images(6, 32, 40), torch.arange(6), ViewKey(3, 7, 0, 6)
    built = Views(16, [small(16, 2), small(8, 1)], MEAN, STD, 0.875, "bicubic")
    assert equal(resized(pipeline(MEAN, STD, 0.875), 16)(images, ids, key), built(images, ids, key))
    assert resized(pipeline(MEAN, STD, 0.875), 16).evaluation() == built.evaluation()


def test_borders_and_covered_squares_shrink_with_the_view() -> None:
    def views(size: int, padding: int, square: int) -> Views:
        crop = RandomResizedCrop(size, (1.0, 1.0), (1.0, 1.0), "bilinear", 0.0)
        shifted = RandomCrop(size, padding, "reflect", 0.5)
        groups = [
            ViewGroup(1, [crop, shifted]),
            ViewGroup(1, [crop, RandomCrop(size, 0, "black", 0.5), Cutout(square, 0.5, 1.0)]),
        ]
        return Views(size, groups, MEAN, STD, 1.0, "bilinear")

    images, ids, key = uint8_images(6, 32, 32), torch.arange(6), ViewKey(3, 7, 0, 6)
    assert equal(resized(views(24, 3, 12), 16)(images, ids, key), views(16, 2, 8)(images, ids, key))


def test_uncompiled_views_of_each_phase_are_not_compiled_and_the_trainings_stay_as_they_are() -> None:
    views = ProgressiveViews(pipeline(), [(0, 8), (0.5, 24)], 10)
    for each in (views, *(phase.views for phase in views.phases)):
        each.compiles = True
    few = views.uncompiled()
    assert [each.compiles for each in (few, *(phase.views for phase in few.phases))] == [False] * 3
    assert [each.compiles for each in (views, *(phase.views for phase in views.phases))] == [True] * 3


def test_a_share_of_the_run_begins_with_the_first_step_that_has_reached_it() -> None:
    views = ProgressiveViews(pipeline(), [(0, 8), (0.5, 12), (0.9, 24)], 10, accumulate=2)
    assert [views.at(step).size for step in range(10)] == [8, 8, 8, 8, 8, 12, 12, 12, 12, 24]
    images, ids = uint8_images(2, 32, 32), torch.arange(2)
    made = [views(images, ids, ViewKey(0, batch, 0, 2), first=1)[0].shape[-1] for batch in range(20)]
    assert made == [8] * 10 + [12] * 8 + [24] * 2
    assert views.evaluation_view(images).shape[-1] == views.size == 24
    assert views.sizes(32) == [24, 24, 12]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            [(0.1, 12), (0.5, 24)],
            r"progressive_resizing=\[\[0.1, 12\], \[0.5, 24\]\]: the first pair must begin at share 0",
        ),
        ([(0, 12), (0.5, 16)], r"the last size must be views.size=24, with which features are evaluated"),
        ([(0, 24), (0.5, 12)], r"the sizes must grow from pair to pair"),
        ([(0, 12), (0, 24)], r"the shares of the run must grow from pair to pair"),
    ],
)
def test_phases_that_cannot_be_are_refused_by_their_key(sizes: list[tuple[float, int]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ProgressiveViews(pipeline(), sizes, 10)


def test_a_crop_that_does_not_resize_is_refused() -> None:
    views = Views(24, [ViewGroup(1, [RandomCrop(24, 4, "reflect", 0.5)])], None, None, 1.0, "bicubic")
    with pytest.raises(
        UserError, match="progressive_resizing: a group of views has no RandomResizedCrop, only RandomCrop"
    ):
        ProgressiveViews(views, [(0, 12), (0.5, 24)], 10)


def test_a_network_for_one_size_is_refused(tmp_path: Path) -> None:
    config = small_run("mae", tmp_path, "data=digits", "progressive_resizing=[[0,4],[0.5,8]]")
    with pytest.raises(UserError, match="progressive_resizing: ViT is built for images of 8 pixels: leave the key out"):
        build_run(config, open_run(config))


def test_the_steps_of_a_run_have_their_sizes_and_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = config_of(tmp_path / "whole", SIZES, "max_epochs=2", "views.size=16")
    resolved = open_run(config)
    run = build_run(config, resolved)
    make, made = run.module.views_of, []

    def views_of(*given: object, **more: object) -> tuple[torch.Tensor, ...]:
        views = make(*given, **more)  # type: ignore[arg-type]
        made.append(views[0].shape[-1])
        return views

    run.module.views_of = views_of  # type: ignore[method-assign]
    run.fit(resolved)
    steps = run.module.total_steps
    assert made[-steps:] == [8 if 2 * step < steps else 12 if 4 * step < 3 * steps else 16 for step in range(steps)]
    stopped = run_to_the_end(config_of(tmp_path / "stopped", SIZES, "max_epochs=2", "views.size=16"), steps // 2 + 1)
    for name, value in run.module.objective.state_dict().items():
        assert torch.equal(value, stopped.module.objective.state_dict()[name]), name


def test_a_skipped_step_is_repeated_at_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, SimCLR, "loss", 1)
    run_of(faulty_config(tmp_path, SimCLR, "progressive_resizing=[[0,6],[0.5,8]]"))
    file = tmp_path / "faults" / "step_000002.pt"
    replay = build_replay(str(file))
    assert isinstance(replay.module.views, ProgressiveViews)
    assert replay.module.views.at(replay.module.global_step).size == 6
    assert replay.run()
    record = torch.load(file, weights_only=True)
    record["config"]["progressive_resizing"] = [[0, "8"]]
    torch.save(record, file)
    with pytest.raises(UserError, match="its progressive_resizing is no list of pairs of a share and pixels"):
        build_replay(str(file))
