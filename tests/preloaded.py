"""What the server of ``tests.forked`` has imported before it forks; of this checkout, whichever one is installed.

Each process that it forks would import the rest anew: pandas, which pyarrow looks for, a data set, Hydra's plugins.
"""

import gc
import importlib
import pkgutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "ssl"))  # Python 3.12's server does not take over pytest's path

import PIL.Image

import tests.parsed_once
import tests.small
import tests.unsynced
import unlabeled

NEEDED = ("matplotlib.pyplot", "pandas", "pyarrow.parquet", "sklearn.datasets", "torch.distributed.fsdp")
OURS = [found.name for found in pkgutil.walk_packages(unlabeled.__path__, "unlabeled.")]

for name in (*NEEDED, *OURS):
    if not name.endswith("__main__"):
        importlib.import_module(name)
PIL.Image.init()
tests.small.composed("experiment=digits")
gc.freeze()  # or each process copies the pages of all these objects when it collects garbage
