"""``python -m unlabeled.data.pack``: the command ``unlabeled pack``, which knows the keys of a data set."""

import runpy

if __name__ == "__main__":
    runpy.run_module("unlabeled.commands.setup.pack", run_name="__main__")
