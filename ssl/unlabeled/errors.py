"""The one error that users see as a single line."""


class UserError(ValueError):
    """Something given to a command cannot work: says what was given, what is allowed and which key or file to change.

    The scripts print its message as one line and exit with code 2; in a notebook it is an ordinary ``ValueError``. One
    that a DataLoader's worker raised arrives with the worker's traceback as its text, of which the last line is kept.
    """

    def __init__(self, message: object = "") -> None:
        text = str(message)
        if text.startswith("Caught UserError in "):  # torch.utils.data, ExceptionWrapper.reraise
            text = text.rpartition(f"{__name__}.UserError: ")[2].rstrip("\n")
        super().__init__(text)
