"""Clusters named by brute force, NMI and ARI as scikit-learn has them, and what labels must not change."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as Lloyd
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch.nn.functional import normalize

from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features
from unlabeled.evaluation.probes.clustering import KMeans, OwnClusters, count_classes_per_cluster, name_clusters


def data(n: int, classes: int, seed: int, noise: float) -> Features:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (n,), generator=generator)
    return Features(centres[labels] + noise * torch.randn(n, 8, generator=generator), labels, torch.arange(n))


def probe(clusters: int | None = None, scale: str = "l2") -> KMeans:
    return KMeans(clusters, scale, restarts=3, max_iter=300, seed=0)


def test_the_best_of_all_namings_is_found() -> None:
    images = np.random.default_rng(0).integers(0, 20, (5, 5))
    named, how = name_clusters(images)
    best = max(sum(images[i, k] for i, k in enumerate(order)) for order in itertools.permutations(range(5)))
    assert images[np.arange(5), named].sum() == best
    assert sorted(named) == [0, 1, 2, 3, 4]
    assert how == "hungarian"


def test_with_more_clusters_than_classes_each_takes_its_largest_class_and_absent_ones_are_never_given() -> None:
    images = np.array([[5, 1, 0, 0], [4, 3, 0, 0], [0, 2, 0, 9], [0, 0, 0, 0]])
    named, how = name_clusters(images)
    assert how == "majority"
    assert named.tolist() == [0, 0, 3, 0]
    named, how = name_clusters(images[:2])
    assert (sorted(named), how) == ([0, 1], "hungarian")


def test_images_are_counted_by_cluster_and_class() -> None:
    table = count_classes_per_cluster(torch.tensor([0, 0, 2, 2, 2]), torch.tensor([1, 1, 0, 3, 0]), 3, 4)
    assert table.tolist() == [[0, 2, 0, 0], [0, 0, 0, 0], [2, 0, 0, 1]]


def test_separate_clusters_are_the_classes() -> None:
    (score,) = probe().fit_predict(data(300, 5, 0, 0.02), data(200, 5, 1, 0.02), 5)
    assert score.top1 == 100
    assert score.metrics == pytest.approx({"nmi": 1, "ari": 1, "matched_on_test_top1": 100})
    assert score.protocol == "kmeans/l2/k=5/hungarian-on-train"
    assert score.notes == []


def test_every_number_is_that_of_scikit_learn_and_a_brute_force_naming_by_train() -> None:
    train, test = data(400, 4, 0, 0.9), data(300, 4, 1, 0.9)
    (score,) = probe().fit_predict(train, test, 4)
    model = Lloyd(4, n_init=3, random_state=0).fit(normalize(train.x).numpy())
    of_test = torch.from_numpy(model.predict(normalize(test.x).numpy())).long()
    assert score.metrics["nmi"] == pytest.approx(normalized_mutual_info_score(test.labels, of_test))
    assert score.metrics["ari"] == pytest.approx(adjusted_rand_score(test.labels, of_test))
    namings = [torch.tensor(order) for order in itertools.permutations(range(4))]
    of_train = torch.from_numpy(model.labels_).long()
    by_train = max(namings, key=lambda naming: int((naming[of_train] == train.labels).sum()))
    assert score.predictions is not None
    assert torch.equal(score.predictions, by_train[of_test])
    assert score.top1 == pytest.approx(100 * float((by_train[of_test] == test.labels).double().mean()))
    best = max(100 * float((naming[of_test] == test.labels).double().mean()) for naming in namings)
    assert score.metrics["matched_on_test_top1"] == pytest.approx(best)
    assert score.metrics["matched_on_test_top1"] >= score.top1


def test_labels_name_clusters_and_do_not_make_them() -> None:
    train, test = data(400, 4, 0, 0.9), data(300, 4, 1, 0.9)
    turned = Features(train.x, (train.labels + 1) % 4, train.ids)
    (first,), (second,) = probe().fit_predict(train, test, 4), probe().fit_predict(turned, test, 4)
    assert first.predictions is not None
    assert second.predictions is not None
    assert torch.equal(second.predictions, (first.predictions + 1) % 4)
    assert (second.metrics["nmi"], second.metrics["ari"]) == (first.metrics["nmi"], first.metrics["ari"])
    other = Features(test.x, (test.labels + 1) % 4, test.ids)
    assert torch.equal(probe().fit_predict(train, other, 4)[0].predictions, first.predictions)  # type: ignore[arg-type]


def test_the_length_of_a_feature_does_not_matter_under_l2_and_its_scale_does_not_when_standardised() -> None:
    train, test = data(400, 4, 0, 0.5), data(300, 4, 1, 0.5)
    (plain,) = probe().fit_predict(train, test, 4)
    longer = [Features(f.x * (1 + torch.arange(len(f.x)) % 7)[:, None], f.labels, f.ids) for f in (train, test)]
    assert probe().fit_predict(longer[0], longer[1], 4)[0].top1 == pytest.approx(plain.top1)
    (plain,) = probe(scale="standardised").fit_predict(train, test, 4)
    scale = torch.tensor([1.0, 100, 1, 1, 0.01, 1, 1, 1])
    scaled = [Features(f.x * scale + 3, f.labels, f.ids) for f in (train, test)]
    assert probe(scale="standardised").fit_predict(scaled[0], scaled[1], 4)[0].top1 == pytest.approx(plain.top1)
    assert plain.protocol == "kmeans/standardised/k=4/hungarian-on-train"


def test_labels_may_have_gaps_and_the_random_states_are_untouched() -> None:
    train, test, names = data(300, 3, 0, 0.3), data(200, 3, 1, 0.3), torch.tensor([2, 5, 11])
    (dense,) = probe().fit_predict(train, test, 3)
    before, numpys = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].sum()
    gaps = [Features(f.x, names[f.labels], f.ids) for f in (train, test)]
    (sparse,) = probe().fit_predict(gaps[0], gaps[1], 13)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state(legacy=False)["state"]["key"].sum() == numpys
    assert sparse.top1 == dense.top1
    assert sparse.protocol == dense.protocol == "kmeans/l2/k=3/hungarian-on-train"
    assert sparse.notes == ["10 of 13 classes have no train image and are never predicted."]


def test_more_clusters_than_classes_are_named_by_majority_and_the_protocol_says_so() -> None:
    train, test = data(400, 4, 0, 0.9), data(300, 4, 1, 0.9)
    (score,) = probe(20).fit_predict(train, test, 4)
    assert score.protocol == "kmeans/l2/k=20/majority-on-train"
    assert score.top1 > 60


def test_a_collapsed_network_is_noted_and_scores_its_one_class() -> None:
    train, test = data(90, 3, 0, 1.0), data(60, 3, 1, 1.0)
    flat = [Features(torch.ones_like(f.x), f.labels, f.ids) for f in (train, test)]
    (score,) = probe().fit_predict(flat[0], flat[1], 3)
    assert score.notes == ["Only 1 of 3 clusters have a train image: the features have collapsed."]
    assert score.predictions is not None
    assert len(set(score.predictions.tolist())) == 1
    assert score.metrics["nmi"] == pytest.approx(0, abs=1e-9)
    assert math.isfinite(score.metrics["ari"])


def test_impossible_settings_name_the_key() -> None:
    with pytest.raises(UserError, match=r"probe\.kmeans\.clusters=1: must be at least 2"):
        probe(1)
    with pytest.raises(UserError, match=r"probe\.kmeans\.scale=cosine: allowed are l2 and standardised"):
        probe(scale="cosine")
    with pytest.raises(UserError, match=r"probe\.kmeans\.restarts=0: must be at least 1"):
        KMeans(None, "l2", 0, 300, 0)
    with pytest.raises(UserError, match=r"probe\.kmeans\.clusters=50: there are only 10 train images"):
        probe(50).fit_predict(data(10, 2, 0, 1.0), data(10, 2, 1, 1.0), 2)


def test_the_runs_own_clusters_are_scored_as_those_of_k_means_that_are_the_same() -> None:
    train, test = data(400, 4, 0, 0.9), data(300, 4, 1, 0.9)
    model = Lloyd(4, n_init=3, random_state=0).fit(normalize(train.x).numpy())
    given = [torch.from_numpy(model.predict(normalize(each.x).numpy())).long() for each in (train, test)]
    own = [
        Features(torch.eye(4)[clusters] * 5, each.labels, each.ids)
        for clusters, each in zip(given, (train, test), strict=True)
    ]
    (found,), (expected,) = OwnClusters().fit_predict(own[0], own[1], 4), probe().fit_predict(train, test, 4)
    assert found.protocol == "clusters/k=4/hungarian-on-train"
    assert (found.top1, found.metrics) == (expected.top1, expected.metrics)
    wide = [Features(torch.cat([each.x, torch.zeros(len(each.x), 5)], 1), each.labels, each.ids) for each in own]
    (over,) = OwnClusters().fit_predict(wide[0], wide[1], 4)
    assert over.protocol == "clusters/k=9/majority-on-train"
    assert over.notes == ["Only 4 of 9 clusters have a train image."]
