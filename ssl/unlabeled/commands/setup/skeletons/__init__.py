"""What ``unlabeled new`` copies: each kind a module that works, its yaml, and what must hold of it as a test.

``skeleton`` and ``Skeleton`` become the name that was given.
"""
