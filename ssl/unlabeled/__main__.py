"""``python -m unlabeled COMMAND``, the same as ``unlabeled COMMAND``."""

from unlabeled.commands.entry_points.console import main

if __name__ == "__main__":
    main()
