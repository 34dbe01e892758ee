"""What the report shows besides numbers, against literal loops and scikit-learn."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from sklearn.metrics import confusion_matrix as sklearn_confusion
from torch import Tensor

from unlabeled.data.fingerprint import fingerprint
from unlabeled.data.memory import ArraySource
from unlabeled.data.source import Splits
from unlabeled.evaluation.cache import TensorCache
from unlabeled.evaluation.evaluate_probes import Row
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.reporting.calibration_plots import certainty_section, reliability
from unlabeled.evaluation.reporting.clusters import clusters_section, largest_clusters
from unlabeled.evaluation.reporting.confusion import confusion_matrix, confusion_section, most_confused
from unlabeled.evaluation.reporting.details.classes import class_scores, class_section, hardest_pairs, pairs_section
from unlabeled.evaluation.reporting.details.geometry import effective_rank as rank_of_shares
from unlabeled.evaluation.reporting.details.geometry import eigenvalue_shares, geometry_sections, pair_similarities
from unlabeled.evaluation.reporting.details.image_cache import ReportImageCache
from unlabeled.evaluation.reporting.details.view_pictures import shrunken, view_pictures
from unlabeled.evaluation.reporting.gallery import choose_queries, neighbour_section
from unlabeled.evaluation.reporting.report_sections import (
    ReportImages,
    best_row,
    evaluation_images,
    make_sections,
    network_pictures,
    reconstructions,
)
from unlabeled.evaluation.uncertainty.calibration import ece
from unlabeled.objective import Backbone, Batch, Objective
from unlabeled.pages.html import inline_png, inline_thumbnail
from unlabeled.pages.section import thumbnail
from unlabeled.representation.spectrum import effective_rank, eigenspectrum
from unlabeled.views.background import RemoveBackground
from unlabeled.views.key import ViewKey
from unlabeled.views.operations import RandomResizedCrop
from unlabeled.views.pipeline import ViewGroup, Views


def guesses(n: int = 500, classes: int = 7) -> tuple[Tensor, Tensor]:
    """Log-probabilities [n, classes] that know something, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator) + 1.5 * torch.eye(classes)[labels]
    return logits.log_softmax(1), labels


def features(n: int, classes: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return Features(torch.randn(n, 12, generator=generator) + torch.eye(12)[labels], labels, torch.arange(n) * 3)


class Recorder:
    """Grey images, and a list of what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int]]] = []

    def __call__(self, split: str, ids: Sequence[int]) -> Tensor:
        self.asked.append((split, list(ids)))
        return torch.full((len(ids), 3, 8, 8), 0.5)


def test_reliability_is_that_of_a_loop_over_images() -> None:
    log_probabilities, labels = guesses()
    expected: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(log_probabilities.double().exp().tolist(), labels.tolist(), strict=True):
        number = next(b for b in range(15) if b / 15 < max(row) <= (b + 1) / 15 + 1e-12)
        expected.setdefault(number, []).append((max(row), row.index(max(row)) == label))
    found = reliability(log_probabilities, labels)
    assert len(found) == len(expected)
    for bin, (_, inside) in zip(found, sorted(expected.items()), strict=True):
        assert bin.confidence == pytest.approx(sum(c for c, _ in inside) / len(inside), abs=1e-12)
        assert bin.accuracy == pytest.approx(sum(right for _, right in inside) / len(inside), abs=1e-12)
        assert bin.share == pytest.approx(len(inside) / 500, abs=1e-12)


def test_the_bins_add_up_to_the_expected_calibration_error() -> None:
    log_probabilities, labels = guesses()
    found = reliability(log_probabilities, labels)
    gaps = sum(bin.share * abs(bin.accuracy - bin.confidence) for bin in found)
    assert gaps == pytest.approx(ece(log_probabilities, labels), abs=1e-12)


def test_a_certain_answer_falls_into_the_last_bin_and_classes_never_seen_do_no_harm() -> None:
    log_probabilities = torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]])
    assert [tuple(bin) for bin in reliability(log_probabilities, torch.tensor([0, 1]))] == [(1.0, 0.5, 1.0)]


def test_the_confusion_matrix_is_scikit_learns_with_classes_that_are_missing() -> None:
    log_probabilities, labels = guesses()
    predictions = log_probabilities.argmax(1)
    found = confusion_matrix(predictions, labels, 9)
    assert found.tolist() == sklearn_confusion(labels, predictions, labels=range(9)).tolist()


def test_the_most_confused_pairs_are_the_largest_cells_off_the_diagonal() -> None:
    log_probabilities, labels = guesses()
    predictions = log_probabilities.argmax(1)
    matrix = confusion_matrix(predictions, labels, 7).tolist()
    cells = [(-matrix[t][p], t, p) for t in range(7) for p in range(7) if t != p and matrix[t][p]]
    found = most_confused(predictions, labels, 10)
    assert [(-pair.images, pair.label, pair.predicted) for pair in found] == sorted(cells)[:10]
    assert found[0].share == found[0].images / sum(matrix[found[0].label])
    assert most_confused(labels, labels) == []


def test_few_classes_are_a_picture_and_many_a_list(tmp_path: Path) -> None:
    predictions, labels = torch.tensor([1, 1, 2, 0]), torch.tensor([0, 0, 2, 0])
    few = confusion_section(predictions, labels, [f"c{i}" for i in range(20)], "knn", tmp_path)
    assert few.title == "Confusion matrix"
    assert few.markdown == "![Confusion matrix](confusion.png)"
    assert (tmp_path / "confusion.png").exists()
    many = confusion_section(predictions, labels, [f"c<{i}>" for i in range(21)], "knn", tmp_path)
    assert many.title == "Most confused classes"
    assert "| c&lt;0> | c&lt;1> | 2 | 67% |" in many.markdown
    assert "<td>c&lt;0&gt;</td><td>c&lt;1&gt;</td>" in many.html


def test_neighbours_are_the_nearest_by_cosine_and_votes_decide_what_is_right() -> None:
    train, test = features(90, 3, 0), features(60, 3, 1)
    found = choose_queries(train, test, seed=0)
    assert [query.right for query in found] == [True] * 3 + [False] * 3
    for query in found:
        x = test.x[query.id // 3].double()
        cosines = torch.nn.functional.cosine_similarity(x[None], train.x.double())
        best = cosines.argsort(descending=True)[:8]
        assert query.ids == (best * 3).tolist()  # ids, not rows
        assert query.labels == train.labels[best].tolist()
        assert query.cosines == pytest.approx(cosines[best].tolist(), abs=1e-6)
        votes = [query.labels.count(c) for c in range(3)]
        assert votes[query.majority] == max(votes)
        assert query.label == int(test.labels[query.id // 3])
    assert choose_queries(train, test, seed=0) == found
    assert choose_queries(train, test, seed=1) != found


def test_few_training_images_and_a_test_without_mistakes_are_shown_all_the_same(tmp_path: Path) -> None:
    train, test = features(3, 3, 0), features(2, 1, 1)
    made = neighbour_section(train, test, ["a", "b", "c"], Recorder(), tmp_path)
    assert made.html.count("<img") == 2 * (1 + 3)
    assert "test 0" in made.html


def test_neighbours_have_the_names_of_their_files_and_long_ones_are_shortened(tmp_path: Path) -> None:
    def name(split: str, id: int) -> str:
        return f"photos/{split}/{'x' * (40 if split == 'train' else 2)}{id}.png"

    made = neighbour_section(features(3, 3, 0), features(2, 1, 1), ["a", "b", "c"], Recorder(), tmp_path, name=name)
    assert "xx0.png" in made.html
    assert "(xx0.png)" in made.markdown
    assert f"{'x' * 20}…{'x' * 14}0.png" in made.html
    assert "photos/" not in made.html


def test_a_large_test_set_is_not_searched_as_a_whole_and_few_images_are_loaded(tmp_path: Path) -> None:
    train, test, image = features(3000, 10, 0), features(900, 10, 1), Recorder()
    log_probabilities = (test.x[:, :10]).log_softmax(1)
    predictions = log_probabilities.argmax(1)
    row = Row("pretrained", "linear", 50.0, predictions=predictions, log_probabilities=log_probabilities)
    made = make_sections(tmp_path, [row], None, None, ReportImages([str(i) for i in range(10)], train, test, image))
    assert sum(len(ids) for _, ids in image.asked) <= 6 * 9 + 3 * 8 + 5 * 6
    assert [section.title for section in made] == [
        "Map of the test features",
        "Accuracy of each class",
        "Confusion matrix",
        "Hardest pairs of classes",
        "Similarities within and between classes",
        "Rank and spectrum",
        "Reliability and risk",
        "Nearest training images",
        "Most and least certain test images",
    ]


def test_the_surest_and_least_sure_images_are_those_of_a_sort(tmp_path: Path) -> None:
    log_probabilities, labels = guesses(100)
    predictions, ids, image = log_probabilities.argmax(1), torch.arange(100) + 500, Recorder()
    classes = [f"c{i}" for i in range(7)]
    made = certainty_section(predictions, log_probabilities, labels, ids, classes, "linear", image, tmp_path)
    confidence = log_probabilities.amax(1).tolist()
    order = sorted(range(100), key=lambda i: -confidence[i])
    wrong = [i for i in order if predictions[i] != labels[i]]
    expected = [order[:8], wrong[:8], order[::-1][:8]]
    assert image.asked == [("test", [500 + i for i in rows]) for rows in expected]
    first = wrong[0]
    said = f"{classes[labels[first]]}, taken for {classes[predictions[first]]}"
    assert (
        f"- surest mistakes: {said}, {torch.tensor(confidence[first]).exp():.0%} · test {500 + first};" in made.markdown
    )


def test_the_accuracy_of_each_class_is_that_of_a_loop_with_the_worst_first(tmp_path: Path) -> None:
    log_probabilities, labels = guesses(200)
    predictions = log_probabilities.argmax(1)
    expected = []
    for label in range(7):
        own = [int(p) == label for p, y in zip(predictions, labels, strict=True) if int(y) == label]
        expected.append((sum(own) / len(own), label, len(own)))
    found = class_scores(predictions, labels)
    assert [(each.accuracy, each.label, each.images) for each in found] == sorted(expected)
    many = class_section(labels, labels, [f"c{i}" for i in range(7)], "knn")
    assert many.html.count('class="bar"') == 7
    half = torch.arange(30).repeat(2)
    assert class_section(half, half, [str(i) for i in range(30)], "knn").html.count('class="bar"') == 20


def test_the_hardest_pairs_are_counted_either_way_and_shown_with_their_true_class(tmp_path: Path) -> None:
    labels, predictions = torch.tensor([0, 0, 1, 1, 2, 2, 0]), torch.tensor([1, 0, 0, 0, 2, 1, 2])
    assert hardest_pairs(predictions, labels) == [(0, 1, 3), (0, 2, 1), (1, 2, 1)]
    image, ids = Recorder(), torch.arange(7) + 10
    made = pairs_section(predictions, labels, ids, ["a", "b", "<c>"], "knn", image, tmp_path, "{} {}".format)
    assert made is not None
    assert image.asked == [("test", [10, 12, 13]), ("test", [16]), ("test", [15])]
    for said in (
        "a and b: 3 mistakes",
        "b and &lt;c&gt;: 1 mistake<",
        "✗ a, taken for b",
        "✗ b, taken for a",
        "✗ &lt;c&gt;, taken for b",
        "test 15",
    ):
        assert said in made.html
    assert pairs_section(labels, labels, ids, ["a", "b", "c"], "knn", image, tmp_path, "{} {}".format) is None


def test_similarities_are_those_of_a_loop_and_the_rank_is_that_of_the_room_of_representations(tmp_path: Path) -> None:
    test = features(40, 3, 0)
    same, other = pair_similarities(test.x, test.labels)
    expected: dict[bool, list[float]] = {True: [], False: []}
    for i in range(40):
        for j in range(i + 1, 40):
            cosine = torch.nn.functional.cosine_similarity(test.x[i].double(), test.x[j].double(), dim=0)
            expected[bool(test.labels[i] == test.labels[j])].append(float(cosine))
    assert same.tolist() == pytest.approx(expected[True], abs=1e-6)
    assert other.tolist() == pytest.approx(expected[False], abs=1e-6)
    shares = eigenvalue_shares(test.x)
    assert float(shares.sum()) == pytest.approx(1)
    assert shares.tolist() == pytest.approx((eigenspectrum(test.x) / eigenspectrum(test.x).sum()).tolist(), abs=1e-9)
    assert rank_of_shares(shares) == pytest.approx(effective_rank(test.x), rel=1e-6)
    assert rank_of_shares(eigenvalue_shares(torch.ones(9, 4))) == 0
    assert [made.title for made in geometry_sections(Features(test.x, test.labels * 0, test.ids), tmp_path)] == [
        "Rank and spectrum"
    ]


def test_views_on_the_report_are_those_that_a_run_draws_and_have_one_size() -> None:
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(256, (9, 3, 16, 16), generator=generator, dtype=torch.uint8)
    groups = [ViewGroup(1, [RandomResizedCrop(size, (0.4, 1.0), (1.0, 1.0), "bilinear", 0.5)]) for size in (16, 8)]
    views, train = Views(16, groups, None, None, 1.0, "bilinear"), features(3, 3, 0)
    found = view_pictures(lambda split, ids: [stored[id] for id in ids], views, train, seed=3)
    assert list(found) == ["image", "view 1, 16 pixels", "view 2, 8 pixels"]
    assert {tuple(column.shape) for column in found.values()} == {(3, 3, 16, 16)}
    ids = train.ids[torch.randperm(3, generator=torch.Generator().manual_seed(3))]
    torch.testing.assert_close(found["image"], stored[ids] / 255)
    drawn = views(stored[ids], ids, ViewKey(3, 0, 0, 3))
    torch.testing.assert_close(found["view 1, 16 pixels"], drawn[0].clamp(0, 1))
    small = shrunken(list(stored[:2]), views)
    assert (small.shape, small.dtype) == ((2, 3, 32, 32), torch.uint8)


def test_a_probe_without_a_mistake_has_none_to_show(tmp_path: Path) -> None:
    log_probabilities, _ = guesses(20)
    predictions = log_probabilities.argmax(1)
    classes, ids = [str(i) for i in range(7)], torch.arange(20)
    made = certainty_section(predictions, log_probabilities, predictions, ids, classes, "linear", Recorder(), tmp_path)
    assert "- surest mistakes: none" in made.markdown


def test_the_best_known_protocol_is_linear_then_knn_and_never_the_best_number() -> None:
    names = ["kmeans", "knn/k=20", "knn/k=200", "linear/cached-sgd-grid-v1", "linear/cached-lbfgs-v1"]
    rows = [Row("pretrained", name, 90.0 - n) for n, name in enumerate(names)]
    random = Row("random init", "linear/cached-lbfgs-v1", 99.0)
    for known, expected in ((5, names[4]), (4, names[3]), (3, names[1]), (1, names[0])):
        best = best_row([random, *rows[:known]], lambda row: True)
        assert best is not None
        assert best.protocol == expected
    assert best_row([], lambda row: True) is None
    for own in ("clusters/k=10/hungarian-on-train", "classifier/of the run"):
        assert best_row([*rows, Row("pretrained", own, 1.0)], lambda row: True) == Row("pretrained", own, 1.0)


def test_images_are_looked_at_again_as_evaluation_sees_them() -> None:
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(256, (4, 3, 8, 8), generator=generator, dtype=torch.uint8)
    views = Views(8, [], [0.5, 0.4, 0.3], [0.2, 0.3, 0.4], 1.0, "bilinear")
    found = evaluation_images(lambda split, ids: [stored[id] for id in ids], views)("train", [2, 0])
    torch.testing.assert_close(found, stored[[2, 0]] / 255)


class Counted(ArraySource):
    """Counts what is decoded."""

    decoded = 0

    def decode(self, index: int) -> Tensor:
        self.decoded += 1
        return super().decode(index)


@pytest.mark.parametrize("gib", [0.0, 1.0])
def test_images_that_were_shown_once_are_kept_as_long_as_the_data_stay(gib: float, tmp_path: Path) -> None:
    def source(value: int) -> Counted:
        images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 8, 8) + value
        return Counted(images, torch.zeros(4, dtype=torch.long), ["a"], "digit")

    def look(source: Counted, ids: list[int]) -> list[int]:
        images = ReportImageCache(
            Splits(source, None, ""), {"train": fingerprint(source)}, TensorCache(str(tmp_path), gib)
        )
        found = images("train", ids)
        images.keep()
        return [int(each[0, 0, 0]) for each in found]

    first, second, changed = source(10), source(10), source(50)
    assert look(first, [3, 1]) == [13, 11]
    assert look(second, [3, 1]) == [13, 11]
    assert (first.decoded, second.decoded) == (2, 0 if gib else 2)
    assert look(second, [1, 3]) == [11, 13]
    assert look(changed, [3, 1]) == [53, 51]


def test_small_images_are_decoded_once_and_large_ones_of_them_are_not_kept(tmp_path: Path) -> None:
    source = Counted(
        torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 8, 8),
        torch.zeros(40, dtype=torch.long),
        ["a"],
        "digit",
    )

    def small(ids: list[int]) -> list[int]:
        splits = Splits(source, source, "")
        images = ReportImageCache(splits, {"test": fingerprint(source)}, TensorCache(str(tmp_path), 1.0))
        found = images.small("test", ids, lambda some: torch.stack(some)[:, :, :2, :2])
        images("test", ids[:1])
        images.keep()
        assert found.shape[1:] == (3, 2, 2)
        return found[:, 0, 0, 0].tolist()

    assert small(list(range(39, -1, -1))) == list(range(39, -1, -1))
    assert source.decoded == 41
    assert small([5, 39]) == [5, 39]
    assert source.decoded == 42  # the large one of 5


class Paints(Objective):
    """Shows the image and its negative; wants one view."""

    def visualize(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        assert not self.training
        assert not torch.is_grad_enabled()
        (view,) = batch.views
        return {"image": view, "negative": -view}


class OnePixel(Backbone):
    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))


def test_reconstructions_come_in_pixels_whatever_views_are_normalised_by() -> None:
    views = Views(8, [], [0.5] * 3, [0.25] * 3, 1.0, "bilinear")
    images = torch.full((2, 3, 8, 8), 1.0)  # 0.75 as a pixel
    objective = Paints().train()
    found = reconstructions(objective, views, images, 0)
    assert objective.training
    assert {name: float(column.mean()) for name, column in found.items()} == {"image": 0.75, "negative": 0.25}
    assert reconstructions(Objective(), views, images, 0) == {}


def test_a_network_that_neither_attends_nor_paints_has_no_pictures() -> None:
    def decode(split: str, ids: Sequence[int]) -> list[Tensor]:
        return [torch.zeros(3, 8, 8, dtype=torch.uint8) for _ in ids]

    views = Views(8, [], None, None, 1.0, "bilinear")
    assert network_pictures(OnePixel(), None, decode, views, features(10, 2, 0), 0) == ({}, {})
    assert list(network_pictures(OnePixel(), Paints(), decode, views, features(10, 2, 0), 0)[1]) == [
        "image",
        "negative",
    ]


def test_small_pictures_keep_every_pixel_and_large_ones_take_little_room() -> None:
    noise = torch.randint(256, (3, 100, 65), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert inline_thumbnail(noise[:, :64, :64]).startswith("data:image/png;base64,")
    photograph = torch.nn.functional.interpolate(noise[None, :, :6, :6].float(), (112, 112), mode="bilinear")[0].byte()
    address = inline_thumbnail(photograph)
    assert address.startswith("data:image/jpeg;base64,")
    assert len(address) < len(inline_png(photograph)) / 2


def test_large_images_are_made_small_and_keep_their_shape() -> None:
    assert thumbnail(torch.zeros(3, 224, 112), 112).shape == (3, 112, 56)
    assert thumbnail(torch.zeros(3, 32, 32), 112).shape == (3, 32, 32)


def test_clusters_are_shown_by_size_with_the_images_of_which_they_are_most_certain(tmp_path: Path) -> None:
    log_p, labels = guesses(60, 7)
    log_p[:, 2] = -50  # nobody's
    assigned, most = log_p.argmax(1), log_p.exp().max(1).values
    found = largest_clusters(log_p, labels)
    sizes = {number: int((assigned == number).sum()) for number in range(7)}
    assert [each.number for each in found] == sorted((n for n in sizes if sizes[n]), key=lambda n: (-sizes[n], n))
    for each in found:
        members = [row for row in range(60) if int(assigned[row]) == each.number]
        assert each.size == len(members)
        assert each.rows == sorted(members, key=lambda row: (-float(most[row]), row))[:8]
        assert each.share == max(sum(int(labels[row]) == c for row in members) for c in range(7)) / len(members)
    images, test = Recorder(), features(60, 7, 0)
    section = clusters_section(log_p, test, [f"<{n}>" for n in range(7)], images, tmp_path)
    assert images.asked[0] == ("test", [3 * row for row in found[0].rows])
    assert (tmp_path / "clusters.png").exists()
    assert f"Cluster {found[0].number + 1}: {found[0].size} images" in section.html
    assert "1 have no test image" in section.words
    assert "<2>" not in section.html  # names are escaped


def test_views_on_a_report_do_not_ask_for_the_masks_of_a_run(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.pt")
    crop = RandomResizedCrop(16, (0.4, 1.0), (1.0, 1.0), "bilinear", 0.5)
    group = ViewGroup(1, [RemoveBackground(gone, 1.0, "black", 0.0, 1.0), crop])
    views = Views(16, [group], None, None, 1.0, "bilinear", masks=gone)
    stored = torch.zeros(9, 3, 16, 16, dtype=torch.uint8)
    assert len(view_pictures(lambda split, ids: [stored[id] for id in ids], views, features(3, 3, 0), seed=3)) == 2
