"""Every choice of images equals a loop in float64, written from its paper."""

import numpy as np
import pytest
import torch

from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.selection.clusters import kmeans, own_clusters, usual_number
from unlabeled.evaluation.selection.k_center import k_center_rows
from unlabeled.evaluation.selection.mining import mined_neighbours
from unlabeled.evaluation.selection.nearest import (
    duplicate_groups,
    nearest_others,
    outlier_scores,
    unit,
    usual_similarity,
)
from unlabeled.evaluation.selection.typicality import typical_rows, typicality


def points(count: int = 40, width: int = 6, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def clouds(sizes: tuple[int, ...] = (12, 8, 6, 3)) -> np.ndarray:
    """Clouds far from one another, behind one another."""
    parts = [10 * np.eye(len(sizes), 6)[number] + 0.1 * points(size, 6, number) for number, size in enumerate(sizes)]
    return np.concatenate(parts).astype(np.float32)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(((a.astype(np.float64) - b.astype(np.float64)) ** 2).sum()))


def literal_typicality(x: np.ndarray, row: int, k: int) -> float:
    others = sorted(distance(x[row], x[other]) for other in range(len(x)) if other != row)
    return 1 / (sum(others[:k]) / len(others[:k]))


@pytest.mark.parametrize("k", [1, 5, 20, 100])
def test_typicality_is_the_inverse_mean_distance_to_the_nearest_others(k: int) -> None:
    x = points() + 1000  # far from the origin, where squared lengths cancel in float32
    expected = [literal_typicality(x, row, k) for row in range(len(x))]
    np.testing.assert_allclose(typicality(x, k), expected, rtol=1e-9)


def test_equal_rows_are_infinitely_typical_and_a_row_alone_is_not() -> None:
    assert typicality(np.ones((3, 2), np.float32)).tolist() == [np.inf] * 3
    assert typicality(np.ones((1, 2), np.float32)).tolist() == [0]


def test_typical_rows_are_the_most_typical_of_the_clusters_with_the_fewest_labels_the_largest_first() -> None:
    x, firsts, sizes = clouds(), (0, 12, 20, 26), (12, 8, 6, 3)
    best = [
        sorted(range(size), key=lambda row, first=first, size=size: -literal_typicality(x[first:][:size], row, 20))  # type: ignore[misc]
        for first, size in zip(firsts, sizes, strict=True)
    ]
    first, second, third, _ = (first + order[0] for first, order in zip(firsts, best, strict=True))
    assert typical_rows(x, 4).tolist() == [first, second, third, best[0][1]]  # a cloud of three waits for the others
    assert typical_rows(x, 3, [13]).tolist() == [first, third, best[0][1]]


def test_no_row_is_chosen_twice_and_none_that_has_a_label() -> None:
    x = clouds()
    chosen = typical_rows(x, 25, [3, 5, 27, 28]).tolist()
    assert sorted([*chosen, 3, 5, 27, 28]) == list(range(29))
    chosen = k_center_rows(np.ones((9, 2), np.float32), 7, [2, 4])[0].tolist()
    assert sorted([*chosen, 2, 4]) == list(range(9))


@pytest.mark.parametrize("labelled", [[], [4, 17]])
def test_k_center_takes_the_row_that_is_farthest_from_all_before(labelled: list[int]) -> None:
    x = points() + 100
    covered, expected, far = list(labelled), [], []
    for _ in range(10):
        if covered:
            gaps = [min(distance(x[row], x[other]) for other in covered) for row in range(len(x))]
            row = max(range(len(x)), key=gaps.__getitem__)
            far.append(gaps[row])
        else:
            row = min(range(len(x)), key=lambda row: distance(x[row], x.astype(np.float64).mean(axis=0)))
            far.append(np.inf)
        covered.append(row)
        expected.append(row)
    rows, reached = k_center_rows(x, 10, labelled)
    assert rows.tolist() == expected
    np.testing.assert_allclose(reached, far, rtol=1e-4)


@pytest.mark.parametrize("choose", [typical_rows, k_center_rows])
def test_more_rows_than_have_no_label_is_one_line(choose: object) -> None:
    with pytest.raises(UserError, match=r"^n=5: allowed: 1 to 4, the number of images without a label$"):
        choose(points(6), 5, [0, 3])  # type: ignore[operator]


def test_outlier_scores_are_one_minus_the_mean_cosine_with_the_nearest() -> None:
    x = unit(points())
    rows, cosines = nearest_others(x, 12)
    for row in range(len(x)):
        every = sorted(float(x[row].astype(np.float64) @ x[other]) for other in range(40) if other != row)[::-1]
        np.testing.assert_allclose(cosines[row], every[:12], atol=1e-6)
        assert row not in rows[row]
        assert abs(outlier_scores(cosines, 5)[row] - (1 - sum(every[:5]) / 5)) < 1e-6


def test_near_duplicates_are_grouped_over_chains_of_pairs() -> None:
    angles = np.radians([0, 2, 4, 90, 91, 180, 270.0])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    rows, cosines = nearest_others(x, 3)
    assert duplicate_groups(rows, cosines, float(np.cos(np.radians(2.5)))) == [[0, 1, 2], [3, 4]]
    assert duplicate_groups(rows, cosines, float(np.cos(np.radians(0.5)))) == []


def test_near_duplicates_are_so_similar_as_few_images_are() -> None:
    near = np.full((300, 2), 0.9)
    assert usual_similarity(near) == 0.95
    near[:6, 0] = 0.96  # a fiftieth
    assert usual_similarity(near) == 0.95
    near[:7, 0] = 0.96
    assert usual_similarity(near) == 0.97
    assert usual_similarity(np.ones((300, 2))) == 1
    assert usual_similarity(np.ones((4, 1))) == 0.95
    assert usual_similarity(np.zeros((1, 0))) == 0.95


@pytest.mark.parametrize("k", [4, 60])
def test_clusters_are_numbered_by_size_and_their_centres_are_means(k: int) -> None:
    x = clouds() if k == 4 else points(300)
    found = kmeans(x, k)
    assert np.all(np.diff(np.bincount(found.assigned)) <= 0)
    assert len(found) == k if k == 4 else len(found) <= k
    for cluster in range(len(found)):
        rows = [row for row in range(len(x)) if found.assigned[row] == cluster]
        mean = x[rows].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(found.centres[cluster], mean, atol=1e-9)
        assert found.members(cluster).tolist() == sorted(rows, key=lambda row, mean=mean: distance(x[row], mean))  # type: ignore[misc]
    if k == 4:
        assert found.assigned.tolist() == [0] * 12 + [1] * 8 + [2] * 6 + [3] * 3


def test_fewer_different_rows_than_clusters_give_fewer_clusters_and_none_is_empty() -> None:
    found = kmeans(np.repeat(np.eye(2, dtype=np.float32), 3, axis=0), 5)
    assert len(found) == 2
    assert found.assigned.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(UserError, match=r"^clusters=4: allowed: 1 to 3, the number of images$"):
        kmeans(points(3), 4)


def test_the_usual_number_of_clusters_suits_3_and_50000_images() -> None:
    assert [usual_number(images) for images in (1, 3, 300, 50_000)] == [1, 1, 12, 30]


def test_mined_neighbours_are_the_image_itself_and_the_nearest_others_of_a_loop() -> None:
    x, ids = points(30), torch.tensor([number for number in range(33) if number not in (4, 17, 32)])
    table = mined_neighbours(Features(torch.from_numpy(x), torch.full_like(ids, -1), ids), 33, 5)
    assert table.dtype == torch.int64
    unit_rows = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    for row, image in enumerate(ids.tolist()):
        cosines = {int(ids[other]): float(unit_rows[row] @ unit_rows[other]) for other in range(30) if other != row}
        assert table[image].tolist() == [image, *sorted(cosines, key=lambda each: -cosines[each])[:5]]
    for missing in (4, 17, 32):  # which cannot be decoded
        assert table[missing].tolist() == [missing] * 6
    with pytest.raises(UserError, match=r"^objective\.companions\.neighbours=30: an image has 29 others"):
        mined_neighbours(Features(torch.from_numpy(x), torch.full_like(ids, -1), ids), 33, 30)


def test_a_methods_own_clusters_are_numbered_by_size_and_begin_with_the_images_of_which_it_is_most_certain() -> None:
    x, p = points(20), np.random.default_rng(0).dirichlet(np.ones(5), 20)
    p[:, 3] = 1e-9  # nobody's
    found, assigned = own_clusters(x, np.log(p)), p.argmax(axis=1)
    order = sorted(set(assigned), key=lambda each: (-int((assigned == each).sum()), list(assigned).index(each)))
    assert len(found) == len(order) < 5
    for number, cluster in enumerate(order):
        rows = [row for row in range(20) if assigned[row] == cluster]
        assert found.members(number).tolist() == sorted(rows, key=lambda row: -p[row].max())
    assert found.own
