"""The command line: it composes a configuration, checks it, and builds objects from it. Only this room knows Hydra."""
