"""The table of CIFAR-10 on a CPU: each number beside the row or the run that it is compared with."""

from typing import Any

from benchmarks.cifar10_cpu import BESIDE, RECIPES, comparisons, rows


def report(seconds: float, **scores: float) -> dict[str, Any]:
    """Keys are features and protocol, joined by two underscores."""
    found = [{"features": f.replace("_", " "), "protocol": p, "top1": top1} for (f, p), top1 in _split(scores)]
    training = {"backbone_parameters": 1000, "seconds_of_last_session": seconds}
    return {"rows": found, "provenance": {"training": training}, "config": {"seed": 0, "max_epochs": 3}}


def _split(scores: dict[str, float]) -> list[tuple[tuple[str, ...], float]]:
    return [(tuple(key.split("__")), value) for key, value in scores.items()]


def test_a_row_without_a_random_network_has_no_gain_and_comparisons_name_both_protocols() -> None:
    recipes = {recipe.folder: recipe for recipe in RECIPES}
    fixmatch = report(600, pretrained__knn=60.0, random_init__knn=20.0, **{"pretrained__classifier/of the run": 75.5})
    alone = report(300, **{"pretrained__classifier/of the run": 61.0})
    scan = report(60, pretrained__clusters=50.0, start__kmeans=42.0, pretrained__kmeans=45.0)
    first, own = rows(recipes["fixmatch_cifar10_cpu"], fixmatch)
    assert first.endswith("| 10.0 | knn | 60.00 | 20.00 | +40.00 |  | – | 0 |")
    assert own.endswith("| 75.50 | – | – |  | – | 0 |")
    reports = {"fixmatch_cifar10_cpu": fixmatch, "labels_alone_cifar10_cpu": alone, "scan_cifar10_cpu": scan}
    table = comparisons({name: (recipes[name], found) for name, found in reports.items()})
    assert table[-2:] == [
        "| SCAN, after SimCLR | clusters | 1.0 | 50.00 | k-means of the features that SCAN began with | kmeans | 1.0 | "
        "42.00 | +8.00 | > 5 |",
        "| FixMatch (4,000 labels) | classifier/of the run | 10.0 | 75.50 | the same labels alone | "
        "classifier/of the run | 5.0 | 61.00 | +14.50 | > 10 |",
    ]
    assert comparisons({}) == []


def test_what_is_compared_and_what_a_run_starts_from_is_a_run_of_the_list() -> None:
    folders = [recipe.folder for recipe in RECIPES]
    assert len({*folders}) == len(folders)
    assert {each for beside in BESIDE for each in (beside.folder, beside.other)} <= {*folders}
    for place, recipe in enumerate(RECIPES):
        starts = [each.partition("{runs}/")[2] for each in recipe.more if "{runs}" in each]
        assert {*starts} <= {*folders[:place]}
