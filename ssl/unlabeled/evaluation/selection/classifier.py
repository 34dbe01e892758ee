"""The linear probe of few labels, and the members whose disagreement says what it does not know."""

import torch
from torch import Tensor

from unlabeled.core.ranges import AtLeastTwo, AtMostHalf, Count, Positive, Seed, SomeOf
from unlabeled.evaluation.features import Features, full_float32
from unlabeled.evaluation.probe import Score
from unlabeled.evaluation.probes.ensembles import bootstrap_heads
from unlabeled.evaluation.probes.linear import check_at_least_1, check_grid, check_share, standardise
from unlabeled.evaluation.probes.logistic import LogisticRegressionProbe
from unlabeled.evaluation.uncertainty.members import Pool, pool_heads


class LabelClassifier:
    """Exact logistic regression on the features of labelled images, and an ensemble of it on bootstrap resamples.

    Args:
        c: one value of C; or several to try, on a part of the labels (:class:`LogisticRegressionProbe`).
        c_of_singles: of several, the one where no class has two labels, so that nothing can be set aside.
        holdout: share of each class set aside to choose C on.
        members: heads of the ensemble, each with the chosen C, on the labels resampled within each class.
        seed: of the part that is set aside, and of the resamples.
        max_iter: of L-BFGS, for each fit.
    """

    def __init__(
        self,
        c: SomeOf[Positive],
        c_of_singles: Positive,
        holdout: AtMostHalf,
        members: AtLeastTwo,
        seed: Seed,
        max_iter: Count,
    ) -> None:
        self.c, self.c_of_singles = check_grid("classifier.c", c), c_of_singles
        self.holdout = check_share("classifier.holdout", holdout)
        self.members, self.seed, self.max_iter = members, seed, check_at_least_1("classifier.max_iter", max_iter)

    def score(self, labelled: Features, test: Features, num_classes: int) -> Score:
        """Returns the linear probe's score on ``test``, fitted on ``labelled``; ``chosen["C"]`` is its C."""
        enough = len(self.c) == 1 or int(labelled.labels.bincount().max()) > 1
        tried = self.c if enough else [self.c_of_singles]
        probe = LogisticRegressionProbe(tried, self.holdout, self.seed, self.max_iter)
        return probe.fit_predict(labelled, test, num_classes)[0]

    def pool(self, labelled: Features, x: Tensor, c: float) -> Pool:
        """Returns the members' pooled predictions for rows ``x`` [M, D]; columns are the classes that have a label."""
        with full_float32(x.device), torch.no_grad():
            labels = torch.unique(labelled.labels, return_inverse=True)[1]
            # float32, as in the ensemble: the heads differ by far more than its rounding
            train, queries = (part.float() for part in standardise(labelled.x, x))
            heads = bootstrap_heads(train, labels, self.members, c, self.seed, self.max_iter)
            return pool_heads(heads.to(queries), queries)

    def choose_c(self, labelled: Features) -> float:
        """Returns the C that the probe chooses on a part of the labels; nothing else is looked at."""
        return float(self.score(labelled, labelled, int(labelled.labels.max()) + 1).chosen["C"])
