"""What the server of ``tests.forked`` has imported before it forks; of this checkout, whichever one is installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "ssl"))  # Python 3.12's server does not take over pytest's path

import matplotlib.pyplot  # noqa: F401
import torch.distributed.fsdp  # noqa: F401

import tests.small  # noqa: F401
import unlabeled.evaluation.evaluate  # noqa: F401
