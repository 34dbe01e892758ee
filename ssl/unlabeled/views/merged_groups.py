"""Joins groups of views whose operations differ in their draws alone, so that one call makes all of these views.

BYOL's second view is its first with less blur, and solarized at times: on a GPU both take the kernels of one.
"""

from collections.abc import Sequence

from unlabeled.views.draw_ahead import DrawnGroup
from unlabeled.views.operations import AppliedAlike, Operation

Pairs = list[tuple[int | None, int | None]]  # for each operation of both its place in the first and in the second group


def merge_groups(groups: Sequence[DrawnGroup]) -> list[DrawnGroup]:
    """Returns the groups, joined where they can be. Each view keeps its number and its draws.

    An operation that only some of the joined views have must be able to leave images as they are (``to_some``).
    """
    joined: list[DrawnGroup] = []
    for group in groups:
        for place, other in enumerate(joined):
            pairs = _aligned(other.operations, group.operations)
            if pairs is not None:
                joined[place] = _join(other, group, pairs)
                break
        else:
            joined.append(group)
    return joined


def _join(first: DrawnGroup, second: DrawnGroup, pairs: Pairs) -> DrawnGroup:
    operations = [
        first.operations[one] if one is not None else second.operations[other or 0]  # one of both is there
        for one, other in pairs
    ]
    of_first, of_second = ([pair[side] for pair in pairs] for side in (0, 1))
    drawn = [
        [None if place is None else own[place] for place in places]
        for group, places in ((first, of_first), (second, of_second))
        for own in group.drawn_by
    ]
    return DrawnGroup(operations, (*first.views, *second.views), drawn)


def _aligned(first: Sequence[Operation], second: Sequence[Operation], at: tuple[int, int] = (0, 0)) -> Pairs | None:
    """Returns the shortest order of the operations of both that keeps the order of each; None: there is none."""
    one, other = (place if place < len(each) else None for place, each in zip(at, (first, second), strict=True))
    if one is None and other is None:
        return []
    choices: Pairs = []
    if one is not None and other is not None and _alike(first[one], second[other]):
        choices.append((one, other))
    if one is not None and _can_be_left_out(first[one]):
        choices.append((one, None))
    if other is not None and _can_be_left_out(second[other]):
        choices.append((None, other))
    for choice in choices:
        rest = _aligned(first, second, (at[0] + (choice[0] is not None), at[1] + (choice[1] is not None)))
        if rest is not None:
            return [choice, *rest]
    return None


def _alike(one: Operation, other: Operation) -> bool:
    if one is other:
        return True
    same = type(one) is type(other) and isinstance(one, AppliedAlike) and isinstance(other, AppliedAlike)
    return same and one.applied_as == other.applied_as  # type: ignore[attr-defined]


def _can_be_left_out(operation: Operation) -> bool:
    return isinstance(operation, AppliedAlike) and getattr(operation, "to_some", False)
