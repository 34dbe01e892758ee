"""What a range of ``unlabeled tune`` means."""

import pytest

from unlabeled.commands.tune.space import Choices, Interval, assignments, corners, split
from unlabeled.errors import UserError

READ = {
    "optimizer.lr=tag(log,interval(0.01,1))": Interval(0.01, 1.0, True, False),
    "optimizer.lr=interval(-1,1)": Interval(-1.0, 1.0, False, False),
    "batch_size=int(interval(8,64))": Interval(8, 64, False, True),
    "batch_size=tag(log,int(interval(8,64)))": Interval(8, 64, True, True),
    "batch_size=range(8,33,8)": Choices(("8", "16", "24", "32")),
    "optimizer.lr=range(0.1,0.4,0.1)": Choices(("0.1", "0.2", "0.3")),
    "objective=simclr,moco_v2": Choices(("simclr", "moco_v2")),
    "views.scale=choice([0.1,1.0],[0.2,1.0])": Choices(("[0.1,1.0]", "[0.2,1.0]")),
}
WRONG = {
    "optimizer.lr=interval(1,0)": "must be below",
    "optimizer.lr=tag(log,interval(0,1))": "must be above 0",
    "optimizer.lr=interval(a,1)": "give a range as",
    "optimizer.lr=glob(*)": "give a range as",
    "batch_size=range(1,100000)": "1 to 1000 values",
    "batch_size=range(5,5)": "1 to 1000 values",
    "optimizer.lr=tag(lgo,interval(0.01,1))": "tag(lgo,…) is not known",
    "batch_size=tag(log,choice(8,16))": "tag(log,…) is not known",
    "batch_size=tag(log,range(8,33,8))": "tag(log,…) is not known",
}


@pytest.mark.parametrize("argument", READ)
def test_a_range_is_read_as_hydra_writes_it(argument: str) -> None:
    fixed, space = split(["experiment=digits", argument, "views.size=16"])
    assert fixed == ["experiment=digits", "views.size=16"]
    assert space == {argument.partition("=")[0]: READ[argument]}


@pytest.mark.parametrize("argument", WRONG)
def test_a_range_that_has_no_values_is_refused_with_its_key(argument: str) -> None:
    with pytest.raises(UserError, match=argument.partition("=")[0]) as refused:
        split([argument])
    assert WRONG[argument] in str(refused.value)


def test_a_key_is_not_given_twice() -> None:
    with pytest.raises(UserError, match="batch_size: is given twice"):
        split(["batch_size=8", "batch_size=16,32"])


def test_every_extreme_value_is_in_a_corner_and_is_written_as_it_was_typed() -> None:
    _, space = split(
        ["optimizer.lr=interval(0.1,1)", "objective=simclr,moco_v2,byol", "views.scale=choice([1,2],[3,4])"]
    )
    lines = [assignments(corner) for corner in corners(space)]
    assert lines == [
        ["optimizer.lr=0.1", "objective=simclr", "views.scale=[1,2]"],
        ["optimizer.lr=1.0", "objective=moco_v2", "views.scale=[3,4]"],
        ["optimizer.lr=1.0", "objective=byol", "views.scale=[3,4]"],
    ]
