"""The one error that users see as a single line."""


class UserError(ValueError):
    """Something given to a command cannot work: says what was given, what is allowed and which key or file to change.

    The scripts print its message as one line and exit with code 2; in a notebook it is an ordinary ``ValueError``.
    """
