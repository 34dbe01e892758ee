"""Which values are tried next, and which trials end early: Optuna's, from what was written down of earlier trials.

The study is kept in memory and made anew from :mod:`history` by each call: Optuna's own databases differ between the
versions that are in use.
"""

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from unlabeled.commands.tune.history import Trial
from unlabeled.commands.tune.space import Choices, Interval, Space
from unlabeled.errors import UserError

if TYPE_CHECKING:
    import optuna

Pruner = Literal["halving", "median", "none"]
NINTH = 9  # of its epochs a trial has in any case: of three the best goes on, after a third again, then to the end


class Sampler:
    """Draws trials by the tree-structured Parzen estimator (Bergstra et al. 2011), the first ten at random.

    Args:
        space: what is searched.
        seed: of the draws; a trial's number and those before it decide its values.
        pruner: what ends a trial early.
        first: epochs before which no trial ends early.
        earlier: trials of former calls.

    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(self, space: Space, seed: int, pruner: Pruner, first: int, earlier: Sequence[Trial]) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UserError("optuna is not installed: pip install 'unlabeled[tune]'") from error
        optuna.logging.set_verbosity(logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # of enqueue_trial, in 2.10
        self.optuna, self.space, self.seed = optuna, space, seed
        # Successive halving decides again where a trial has had NINTH times as many epochs: then it goes to its end.
        self.last = NINTH * first if pruner == "halving" else None
        self.study = optuna.create_study(direction="maximize", pruner=_pruner(optuna, pruner, first))
        self.distributions = {key: _distribution(optuna, dimension) for key, dimension in space.items()}
        for trial in earlier:
            self._replay(trial)

    def ask(self, number: int | None = None) -> "optuna.Trial":
        """Returns the next trial, whose ``params`` are the values to try.

        Args:
            number: of the trial in the search; None: the number of those before it. Where some are missing, two trials
                would otherwise draw by one seed.
        """
        number = len(self.study.get_trials(deepcopy=False)) if number is None else number
        seed = int(np.random.SeedSequence((self.seed, number)).generate_state(1)[0])
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed)
        return self.study.ask(self.distributions)

    def goes_on(self, asked: "optuna.Trial", epoch: int) -> bool:
        """Returns whether a trial goes on after the score of an epoch that was reported."""
        return (self.last is not None and epoch >= self.last) or not asked.should_prune()

    def tell(self, asked: "optuna.Trial", trial: Trial) -> None:
        """Takes the outcome of a trial into account for the next ones."""
        state = self._states()[trial.state]
        self.study.tell(asked, trial.score if trial.state == "ended" else None, state)

    def _replay(self, trial: Trial) -> None:
        """Tells an earlier trial score by score: successive halving keeps what it decides from in the trial."""
        self.study.enqueue_trial(trial.values)
        asked = self.study.ask(self.distributions)
        for epoch, score in sorted(trial.scores.items()):
            asked.report(score, epoch)
            self.goes_on(asked, epoch)
        self.tell(asked, trial)

    def _states(self) -> dict[str, Any]:
        states = self.optuna.trial.TrialState
        return {"ended": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}


def _distribution(optuna: Any, dimension: Interval | Choices) -> Any:
    kinds = optuna.distributions
    if isinstance(dimension, Choices):
        return kinds.CategoricalDistribution(dimension.values)
    if hasattr(kinds, "FloatDistribution"):  # Optuna 3; hydra-optuna-sweeper holds it below
        kind = kinds.IntDistribution if dimension.whole else kinds.FloatDistribution
        return kind(dimension.low, dimension.high, log=dimension.log)
    names = {(0, 0): "Uniform", (0, 1): "LogUniform", (1, 0): "IntUniform", (1, 1): "IntLogUniform"}
    kind = getattr(kinds, names[dimension.whole, dimension.log] + "Distribution")
    return kind(dimension.low, dimension.high)


def _pruner(optuna: Any, name: Pruner, first: int) -> Any:
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)
    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=first)
    return optuna.pruners.NopPruner()
