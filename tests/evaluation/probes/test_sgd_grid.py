import math

import pytest
import torch
from torch import Tensor

from tests.clusters import clusters, sgd_grid
from unlabeled.evaluation.probes.linear import predict, split_holdout, standardise
from unlabeled.evaluation.probes.sgd_grid import Head


def alone(x: Tensor, labels: Tensor, classes: int, head: Head) -> Tensor:
    """What torch.optim.SGD makes of one linear layer, three epochs of batches of 32: [C, D + 1]."""
    model = torch.nn.Linear(x.shape[1] - 1, classes, dtype=x.dtype)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=head.learning_rate, momentum=0.9, weight_decay=head.weight_decay)
    generator = torch.Generator().manual_seed(0)
    batches = [rows for _ in range(3) for rows in torch.split(torch.randperm(len(x), generator=generator), 32)]
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = head.learning_rate * (1 + math.cos(math.pi * step / len(batches))) / 2
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows, :-1]), labels[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return torch.cat([model.weight.detach(), model.bias.detach()[:, None]], dim=1)


@pytest.mark.parametrize("decays", [(0.0,), (0.0, 1e-3, 0.1)])
def test_all_heads_equal_separate_runs_of_torch_sgd(decays: tuple[float, ...]) -> None:
    train, rates = clusters(150, 6, 4, 0), [0.001, 0.03, 1.0]
    heads = [Head("last", rate, decay) for rate in rates for decay in decays]
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        (x,) = standardise(train.x, dtype=dtype)
        weights = sgd_grid(rates, decays).fit(x, train.labels, 4, heads)
        for head, weight in zip(heads, weights, strict=True):
            expected = alone(x, train.labels, 4, head)
            assert (weight - expected).abs().max() <= bound * expected.abs().max()


def test_the_head_is_the_best_on_the_holdout_across_rates_decays_and_kinds_and_is_refitted_on_all_of_train() -> None:
    train, test = clusters(200, 6, 3, 0), clusters(150, 6, 3, 1)
    rates, decays, kinds = [1e-6, 0.01, 0.1, 3.0], (0.0, 0.1), ("last", "cls")
    (score,) = sgd_grid(rates, decays, kinds).fit_predict(train, test, 3)
    fit, held = split_holdout(train.labels, 0.1, 0)
    expected = {}
    for kind in kinds:
        x = train.of(kind).x
        part, rest = standardise(x[fit], x[held], dtype=torch.float32)
        for rate in rates:
            for decay in decays:
                weight = alone(part, train.labels[fit], 3, Head(kind, rate, decay))
                right = int((predict(weight, rest) == train.labels[held]).sum())
                expected[f"{kind} {rate:g} wd={decay:g}"] = 100 * right / len(held)
    assert score.chosen["holdout_top1"] == pytest.approx(expected)
    best = Head(*(score.chosen[name] for name in Head._fields))
    assert expected[f"{best.features} {best.learning_rate:g} wd={best.weight_decay:g}"] == max(expected.values())
    x, unseen = standardise(train.of(best.features).x, test.of(best.features).x, dtype=torch.float32)
    logits = unseen @ alone(x, train.labels, 3, best).T
    assert score.log_probabilities is not None
    torch.testing.assert_close(score.log_probabilities, logits.log_softmax(dim=1), rtol=1e-4, atol=1e-4)
    assert score.top1 == pytest.approx(100 * float((logits.argmax(dim=1) == test.labels).double().mean()))


def test_the_protocol_names_what_makes_scores_incomparable() -> None:
    names = {
        sgd_grid([0.1]).protocol: "linear/cached-sgd-grid-v2/epochs=3/batch=32/wd=0.01",
        sgd_grid([0.1], (1e-6, 0.0)).protocol: "linear/cached-sgd-grid-v2/epochs=3/batch=32/wd=0,1e-06",
        sgd_grid([0.1], kinds=("last", "cls")).protocol: (
            "linear/cached-sgd-grid-v2/epochs=3/batch=32/wd=0.01/features=last+cls"
        ),
        sgd_grid([0.1], kinds=("cls",)).protocol: "linear/cached-sgd-grid-v2/epochs=3/batch=32/wd=0.01/features=cls",
    }
    assert len(names) == 4
    assert list(names) == list(names.values())


def test_one_rate_is_not_chosen_and_an_edge_is_noted() -> None:
    train, test = clusters(200, 6, 3, 0), clusters(100, 6, 3, 1)
    (score,) = sgd_grid([0.01]).fit_predict(train, test, 3)
    assert score.chosen["chosen_on"] == "nothing"
    (edge,) = sgd_grid([0.001, 0.01]).fit_predict(train, test, 3)  # of two values, both are edges
    best = f"The best learning rate, {edge.chosen['learning_rate']:g}, is at an edge of 0.001 to 0.01"
    assert edge.notes == [f"{best}: widen probe.linear_sgd.learning_rates."]
