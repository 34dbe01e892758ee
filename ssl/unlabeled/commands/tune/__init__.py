"""``unlabeled tune``: searches for the values of a training's keys that give the best features."""
