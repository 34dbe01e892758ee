"""From numbers to findings."""

import math
from dataclasses import replace
from typing import Any

import pytest

from unlabeled.core.escaping import escaped
from unlabeled.health.diagnosis import Diagnosis
from unlabeled.health.facts import RunFacts, facts_from_dict
from unlabeled.health.rules import RULES, rules_for
from unlabeled.objective import MetricBound

SIGN = MetricBound("codes-not-balanced", "effective_codes", 50, 100.5, "few prototypes get all", "more iterations")
FACTS = RunFacts("SwAV", math.log(100), 2000, 128, (SIGN,))
HEALTHY: dict[str, float] = {
    "train/loss": 4.4,
    "train/effective_codes": 100,
    "train/skipped_steps": 0,
    "health/image_difference": 0.24,
    "health/pixel_variation": 0.2,
    "health/neighbours": 0.0,
    "health/target_gradient": 0.0,
    "health/radial_gradient": 1e-4,
    "health/embedding_std": 0.35,
    "health/feature_std": 0.5,
    "health/feature_rankme_centred": 30.0,
    "health/features_finite": 1.0,
    "health/embedding_rankme_centred": 25.0,
    "health/gradient_norm/backbone": 0.1,
    "health/update_ratio/backbone": 0.005,
    "health/teacher_distance": 0.02,
    "health/data_wait": 0.01,
    "health/planned/momentum": 0.99,
    "health/planned/queue_age": 8.0,
}

# metric, an unhealthy value, the finding, the step at which it is made when every tenth step has that value from 30 on
CASES: list[tuple[str, float, str, int]] = [
    ("health/image_difference", 0.0, "images-are-equal", 30),
    ("health/pixel_variation", 0.001, "images-are-flat", 30),
    ("health/neighbours", 1.0, "not-shuffled", 30),
    ("health/target_gradient", 1.0, "gradient-reaches-targets", 30),
    ("health/radial_gradient", 0.3, "embeddings-not-normalised", 30),
    ("health/embedding_std", 0.02, "embeddings-collapsed", 40),
    ("health/feature_std", 0.01, "features-collapsed", 30),
    ("health/feature_rankme_centred", 1.5, "rank-collapsed", 30),
    ("health/features_finite", 0.0, "features-not-finite", 30),
    ("health/gradient_norm/backbone", 0.0, "no-gradient", 40),
    ("health/update_ratio/projector", 0.4, "update-too-large", 40),
    ("health/teacher_distance", 0.0, "teacher-is-the-student", 30),
    ("health/update_ratio/backbone", 0.04, "learning-rate-high", 30),
    ("health/planned/queue_age", 256, "queue-too-old", 40),
    ("health/data_wait", 0.6, "waiting-for-data", 40),
    ("train/skipped_steps", 2.0, "steps-skipped", 30),
    ("train/effective_codes", 1.2, "codes-not-balanced", 50),
    ("train/loss", 4.6, "loss-at-collapse", 130),
    ("train/loss", 9.0, "loss-diverges", 130),
    ("health/embedding_rankme_centred", 3.0, "rank-falls", 30),
]


def follow(
    facts: RunFacts, metric: str, value: float, until: int = 300, since: int = 30
) -> tuple[Diagnosis, dict[str, int]]:
    """A run that is healthy before ``since``, and the step at which each finding was made."""
    diagnosis, made = Diagnosis(facts), dict[str, int]()
    for step in range(10, until + 1, 10):
        moving: dict[str, Any] = {"health/teacher_length": 39.0 + step / 1000}
        diagnosis.add(step, HEALTHY | moving | ({metric: value} if step >= since else {}))
        for finding in diagnosis.findings:
            made.setdefault(finding.name, step)
    return diagnosis, made


def test_a_healthy_run_has_no_finding() -> None:
    assert follow(FACTS, "health/data_wait", 0.01)[1] == {}


@pytest.mark.parametrize(("metric", "value", "name", "step"), CASES)
def test_an_unhealthy_number_is_named_after_as_many_values_and_steps_as_its_rule_asks(
    metric: str, value: float, name: str, step: int
) -> None:
    diagnosis, made = follow(FACTS, metric, value)
    assert made == {name: step}
    (finding,) = diagnosis.findings
    assert (finding.since, finding.last, finding.holds) == (30, 300, True)
    assert "since step 30" in finding.sentence
    assert "Try: " in finding.sentence


@pytest.mark.parametrize(("momentum", "names"), [(0.99, ["teacher-is-frozen"]), (0.999999, [])])
def test_a_teacher_that_stands_still_is_frozen_unless_its_momentum_is_nearly_one(
    momentum: float, names: list[str]
) -> None:
    diagnosis = Diagnosis(FACTS)
    for step in range(10, 101, 10):
        diagnosis.add(step, HEALTHY | {"health/teacher_length": 39.0, "health/planned/momentum": momentum})
    assert [finding.name for finding in diagnosis.findings] == names


def test_what_has_passed_is_told_with_its_end_and_holds_no_more() -> None:
    diagnosis = Diagnosis(FACTS)
    for step in range(10, 301, 10):
        wait = 0.8 if 50 <= step <= 90 else 0.02
        diagnosis.add(step, {"health/data_wait": wait})
    (finding,) = diagnosis.findings
    assert (finding.since, finding.last, finding.holds) == (50, 90, False)
    assert "80% of the time is spent waiting for data, from step 50 to 90" in finding.sentence


def test_one_rule_makes_one_finding_however_many_parts_it_holds_for() -> None:
    diagnosis = Diagnosis(FACTS)
    for step in range(50, 301, 50):
        diagnosis.add(step, {f"health/update_ratio/{part}": 0.5 for part in ("projector", "predictor")})
    assert [finding.sentence.split(",")[0] for finding in diagnosis.findings] == [
        "A step changes the weights of projector by 50% of their length"
    ]


def test_a_long_run_may_stand_at_its_value_of_collapse_for_a_fiftieth_of_its_steps() -> None:
    long = RunFacts("SwAV", math.log(100), 100_000, 128)
    assert follow(long, "train/loss", 4.6, until=2_000)[1] == {}
    assert follow(long, "train/loss", 4.6, until=2_100)[1] == {"loss-at-collapse": 2_030}


def test_steps_of_muon_may_be_as_large_as_those_of_its_healthy_runs() -> None:
    muon = replace(FACTS, orthogonal_steps=True)
    assert facts_from_dict(muon.as_dict()) == muon
    for facts, found in ((FACTS, {"learning-rate-high": 30}), (muon, {})):
        assert follow(facts, "health/update_ratio/backbone", 0.06)[1] == found
    assert "learning-rate-high" in follow(muon, "health/update_ratio/backbone", 0.11)[1]


def test_a_loss_that_falls_to_its_value_at_collapse_diverges_only_above_its_start() -> None:
    facts = RunFacts("SimSiam", -1.0, 2000, 128)
    for slope, names in ((-0.001, []), (0.001, ["loss-diverges"])):
        diagnosis = Diagnosis(facts)
        for step in range(10, 301, 10):
            diagnosis.add(step, {"train/loss": slope * step})
        assert [finding.name for finding in diagnosis.findings] == names


def test_numbers_that_are_not_finite_or_no_numbers_are_left_out() -> None:
    diagnosis = Diagnosis(FACTS)
    diagnosis.add(10, {"health/feature_std": math.nan, "health/data_wait": None, "train/loss": "x"})
    assert diagnosis.findings == []


def test_facts_come_back_from_plain_values_and_names_of_rules_are_unique() -> None:
    assert facts_from_dict(FACTS.as_dict()) == FACTS
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)


def test_the_name_of_a_metric_from_a_file_is_text_and_no_format() -> None:
    name = "a{value.__class__.__mro__} {0} \x1b]0;b\x07"
    *_, rule = rules_for(RunFacts("SwAV", None, 2000, 128, (SIGN._replace(metric=name),)))
    assert rule.what.format(value=3.0, of="") == escaped(name.replace("_", " ")) + " 3, healthy are 50 to 100.5"
