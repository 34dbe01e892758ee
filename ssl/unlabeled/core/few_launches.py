"""Says where code should take the form with few launches: what a GPU needs is not what a CPU needs."""

import torch


def few_launches(device: torch.device) -> bool:
    """Returns whether to compute on all rows with fixed shapes, instead of on the fewest rows.

    A GPU computes what is not needed in less time than a launch takes, about 5 µs, and shapes that depend on values
    would make the host wait for it. Compiled code needs fixed shapes too. A CPU is faster with the fewest rows. Every
    choice between two forms is made here; tests compare the two with each other.
    """
    return device.type != "cpu" or torch.compiler.is_compiling()
