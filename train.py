"""Pretrain a backbone without labels, then evaluate it: ``python train.py experiment=digits``.

The same as ``unlabeled train`` of an installed package; what happens, in order, is in the file imported here.
"""

from unlabeled.commands.train.train import main

if __name__ == "__main__":
    main()
