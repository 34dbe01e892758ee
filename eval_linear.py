"""Evaluate a frozen backbone by k-NN and linear probes: ``python eval_linear.py run=outputs/NAME``.

The same as ``unlabeled evaluate`` of an installed package; what happens, in order, is in the file imported here.
"""

from unlabeled.commands.evaluate.evaluate import main

if __name__ == "__main__":
    main()
