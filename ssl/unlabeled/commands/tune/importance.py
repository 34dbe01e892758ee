"""Which of the searched keys decides the score."""

from collections.abc import Sequence

from unlabeled.commands.tune.history import Trial
from unlabeled.commands.tune.space import Space

LEAST = 4  # trials that a forest can be fitted to


def importances(space: Space, trials: Sequence[Trial]) -> dict[str, float]:
    """Returns the share of each key, largest first; they sum to 1. Empty where too few trials ended.

    It is the permutation importance of a random forest (Breiman 2001) fitted to values and scores: by how much its R²
    falls when the values of one key are shuffled among the trials.
    """
    ended = [trial for trial in trials if trial.state == "ended" and trial.score is not None]
    if len(ended) < LEAST or len({trial.score for trial in ended}) < 2:
        return {}
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    places = [[dimension.place(trial.values[key]) for key, dimension in space.items()] for trial in ended]
    scores = [trial.score for trial in ended]
    forest = RandomForestRegressor(64, random_state=0).fit(places, scores)
    found = permutation_importance(forest, places, scores, n_repeats=10, random_state=0).importances_mean.clip(min=0)
    if not found.sum():
        return {}
    shares = zip(space, (found / found.sum()).tolist(), strict=True)
    return dict(sorted(shares, key=lambda share: -share[1]))
