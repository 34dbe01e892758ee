"""The benchmark of accuracy and minutes says what its runs reached, and no more."""

from benchmarks.speedrun import Reached, minutes_to, page

PROVENANCE = {"versions": {"torch": "2"}, "machine": {"cpu": "a CPU", "cpus": 2}, "date": "2026-11-21T00:00"}
RUNS = [
    Reached(epochs, minutes, 100.0, linear, linear - 2, PROVENANCE)
    for epochs, minutes, linear in ((50, 5.0, 84.9), (100, 10.0, 90.0), (200, 20.0, 91.0))
]


def test_the_minutes_to_a_target_are_those_of_the_shortest_run_that_reaches_it() -> None:
    assert [minutes_to(target, RUNS) for target in (80, 90, 92)] == [RUNS[0], RUNS[1], None]


def test_a_target_that_no_run_reaches_is_said_to_be_missed() -> None:
    text = page("recipe", RUNS, [85, 92])
    assert "- 85 % linear: 10.0 minutes, 100 epochs" in text
    assert "- 92 % linear: reached by none of these runs" in text
    assert "| 50 | 5.0 | 100 | 84.90 | 82.90 |" in text


def test_several_seeds_are_one_line_and_their_mean_reaches_a_target() -> None:
    knn = {12: (59.0, 61.0, 60.6), 36: (66.0, 66.0, 66.0)}
    runs = [Reached(epochs, epochs / 4, 100.0, 1.0, each, PROVENANCE) for epochs in (36, 12) for each in knn[epochs]]
    text = page("recipe", runs, [60, 65], "knn")
    assert "| 12 | 3.0 ± 0.0 | 100 ± 0 | 1.00 ± 0.00 | 60.20 ± 1.06 |" in text
    assert "- 60 % k-NN: 3.0 minutes, 12 epochs" in text
    assert "- 65 % k-NN: 9.0 minutes, 36 epochs" in text
    assert "3 seeds: mean ± deviation of the sample" in text
