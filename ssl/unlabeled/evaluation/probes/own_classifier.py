"""The classifier that a method has trained itself (FixMatch, the supervised row), as it is: nothing is fitted."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unlabeled.core.escaping import escaped
from unlabeled.core.phrases import shorten_list
from unlabeled.errors import UserError
from unlabeled.evaluation.features import Features, require_finite, top1
from unlabeled.evaluation.probe import Head, Score
from unlabeled.evaluation.probes.linear import Scaling, classify


class OwnClassifier:
    """Predicts by the linear classifier of the run on the features of the network that is evaluated.

    It has seen the labels that the run was trained with, and no others.
    """

    needs = 1
    kinds = ("last",)

    def __init__(self) -> None:
        self._classifier: nn.Linear | None = None
        self._labels: int | None = None
        self._outputs: list[int] | None = None  # the output of each class; None: in their order

    def prepare(self, classifier: nn.Module | None, labels: int | None) -> None:
        """Takes the classifier, whose weights may be loaded later.

        Args:
            classifier: of the run's method; None: it has none.
            labels: how many labelled images it was trained with; None: all of train.

        Raises:
            UserError: there is no such classifier.
        """
        if not isinstance(classifier, nn.Linear):
            raise UserError(
                "probe.classifier: the method of this run has no classifier of its own; leave the probe out, or give"
                " probe=linear, which fits one"
            )
        self._classifier, self._labels = classifier, labels

    def match(self, known: Sequence[str], classes: Sequence[str]) -> None:
        """Finds the output of each class of the images by its name; by its number where one side has but numbers.

        Args:
            known: names of the classifier's outputs; empty: its run is older and did not keep them.
            classes: of the images that are evaluated.

        Raises:
            UserError: a class that the classifier does not know, or another number of classes without names.
        """
        self._outputs = None
        if _are_numbers(known) or _are_numbers(classes):
            if known and len(known) != len(classes):
                raise UserError(
                    f"probe.classifier: the classifier of the run has {len(known)} classes, these images"
                    f" {len(classes)}, and not both have names to match them by; leave the probe out"
                )
            return
        if missing := [name for name in classes if name not in known]:
            raise UserError(
                "probe.classifier: the classifier of the run does not know these classes of the images: "
                f"{shorten_list([*map(escaped, missing)])}; leave the probe out"
            )
        self._outputs = [known.index(name) for name in classes]

    def fit_predict(self, train: Features, test: Features, num_classes: int) -> list[Score]:
        """Returns one Score, and the classifier to predict with; looks at ``test`` alone.

        Raises:
            UserError: features that are not finite, or images of more classes than the classifier has.
        """
        require_finite("the classifier of the run", test.x)
        weight, scaling = self._matrix(num_classes, test.x.device)
        classes = torch.arange(num_classes, device=test.x.device)
        predictions, log_p = classify(weight, scaling(test.x.to(weight.dtype)), classes, num_classes)
        head = Head("linear", "last", {"weight": weight, **scaling._asdict(), "columns": classes})
        score = top1(predictions, test.labels)
        chosen = {"chosen_on": "nothing"}
        return [Score("classifier/of the run", score, chosen, [], predictions, log_p, n_train=self._labels, head=head)]

    def _matrix(self, num_classes: int, device: torch.device) -> tuple[Tensor, Scaling]:
        """Returns weights and bias of these classes as one matrix [C, D + 1], and a scaling that changes nothing."""
        layer = self._classifier
        assert layer is not None
        if layer.out_features < num_classes:
            raise UserError(
                f"probe.classifier: the classifier of the run knows {layer.out_features} classes, and these images have"
                f" {num_classes}; leave the probe out"
            )
        outputs = range(num_classes) if self._outputs is None else self._outputs
        whole = torch.cat([layer.weight, layer.bias[:, None]], 1)[[*outputs]].detach().to(device)
        return whole, Scaling(whole.new_zeros(layer.in_features), whole.new_ones(layer.in_features))


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether classes have no names: there are none, or they count from 0."""
    return [*names] == [*map(str, range(len(names)))]
