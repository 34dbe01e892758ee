"""No key of any yaml takes a value outside its range: every key × every kind of wrong value."""

import copy
import inspect
from collections.abc import Iterator
from functools import cache
from pkgutil import resolve_name
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.small import CONF, composed, members, missing_keys
from unlabeled.commands.checks.signatures import parameters_of
from unlabeled.commands.checks.values import LISTS, Built, alternatives, check_value, fits, in_words, plain
from unlabeled.commands.config import check_values
from unlabeled.commands.keys import TYPES
from unlabeled.commands.reference import COMMANDS, GROUPS, built, reference
from unlabeled.core.ranges import FilePath, Positive, Share
from unlabeled.errors import UserError

NAN, INFINITE = float("nan"), float("inf")
HUGE = 10**18

# Keys whose number, or whose list's elements, may be 0; no other may.
ZERO = {
    *("ignore", "warmup_steps", "finetune_warmup_steps"),
    *("seed", "labels_seed", "num_workers", "memory_gib", "cache_gib", "near_distance", "trial_steps", "trial_from"),
    *("warmup_epochs", "weight_decay", "weight_decays", "final_weight_decay", "final_learning_rate", "momentum"),
    *("warmup_start_lr", "final_lr", "final_momentum", "center_momentum", "temperature_epochs", "registers"),
    *("freeze_last_layer_epochs", "off_diagonal_weight", "invariance", "variance", "covariance"),
    *("betas", "dampening", "w_a", "mean", "alpha", "beta", "label_smoothing", "assigned", "queue_length", "devices"),
    *("queue_from_epoch", "freeze_prototypes_epochs", "brightness", "contrast", "saturation", "hue", "probability"),
    *(
        "flip",
        "sigma",
        "kernel_fraction",
        "threshold",
        "erasing",
        "mixup",
        "cutmix",
        "drop_path",
        "dropout",
        "head_init_std",
    ),
    *("init_std", "min_coverage", "max_coverage", "data_images", "regularisation", "padding", "magnitude", "fill"),
    *("entropy_weight", "held_out"),
    *("explore_images", "least_steps", "slope"),
    *("class_weight", "patch_weight", "koleo_weight", "patch_embed_rate"),
    *("unlabelled_weight",),
}
BELOW = {"mean"}  # keys whose list may hold a number below 0
EMPTY = {"projection_hidden", "per_class", "fractions", "labels_files", "tags", "differs", "runs", "groups"}
EMPTY |= {"operations", "decayed_also", "against", "few", "sets"}


class Key(NamedTuple):
    """One key of the yamls."""

    path: str
    kind: Any

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]


@cache
def every_key() -> tuple[Key, ...]:
    """Of the top of every command and of everything that a yaml builds."""
    found = {name: Key(name, kind) for name, kind in TYPES.items()}
    for path in sorted(CONF.rglob("*.yaml")):
        for target in sorted(targets(OmegaConf.to_container(OmegaConf.load(path)))):
            for name, parameter in parameters_of(target, target).items():
                found[f"{target}.{name}"] = Key(f"{target}.{name}", parameter.kind)
    return tuple(key for key in found.values() if set(alternatives(key.kind)) - {Any, Built, type(None)})


def targets(node: Any) -> set[str]:
    below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    own = {node["_target_"]} if isinstance(node, dict) and "_target_" in node else set()
    return own.union(*(targets(each) for each in below))


def wrong_values(key: Key) -> Iterator[Any]:
    """What this key must not have, by what it is and not by the range it declares."""
    kinds = alternatives(key.kind)
    literals = [each for kind in kinds if get_origin(kind) is Literal for each in get_args(kind)]
    lists = [kind for kind in kinds if get_origin(kind) in LISTS]
    yield from (NAN, INFINITE, -INFINITE, HUGE, -HUGE, float(HUGE), -1, "")
    yield "a\0b"
    if str not in kinds:
        yield from ("word", "１２")
    if 0 not in literals and not (key.name in ZERO and {int, float} & {*kinds}):
        yield 0
    if not {bool, Any} & {*kinds}:
        yield from (value for value in (True, False) if value not in literals)
    if type(None) not in kinds:
        yield None
    if dict not in [get_origin(kind) or kind for kind in kinds] and Built not in kinds:
        yield from ({}, {"a": 1})
    if not lists:
        yield from ([], [1], ["a"])
    for kind in lists:
        yield from wrong_lists(key, kind)


def wrong_lists(key: Key, kind: Any) -> Iterator[Any]:
    arguments = [each for each in get_args(kind) if each is not ...]
    if key.name not in EMPTY:
        yield []
    length = len(arguments) if get_origin(kind) is tuple and ... not in get_args(kind) else 1
    if get_origin(kind) is tuple and ... not in get_args(kind):
        yield from ([0.5] * (length - 1), [0.5] * (length + 1))
    numbers = {int, float} & {*alternatives(arguments[0])}
    wrong: list[Any] = [NAN, INFINITE, -INFINITE, HUGE, True, None, {}, [[]]]
    wrong += ["a", *([] if key.name in ZERO else [0]), *([] if key.name in BELOW else [-1])] if numbers else [1, ""]
    yield from ([each] * length for each in wrong)


@pytest.mark.parametrize("key", every_key(), ids=lambda key: key.path.removeprefix("unlabeled."))
def test_a_key_refuses_each_value_that_is_of_another_kind_or_out_of_range_in_one_line_that_names_it(key: Key) -> None:
    for value in wrong_values(key):
        with pytest.raises(UserError) as refused:
            check_value(value, key.kind, key.path)
        message = str(refused.value)
        assert message.startswith(f"{key.path}")
        assert "must be" in message
        assert "\n" not in message
        assert len(message) < 600


@st.composite
def mutations(draw: st.DrawFn) -> tuple[tuple[str, ...], tuple[Any, ...], Any]:
    """A choice for each group, the place of one of its keys, and a value that may not stand there."""
    group = draw(st.sampled_from([each for each in GROUPS if each != "detection"]))  # which a run does not have
    choices = (f"{group}={draw(st.sampled_from(members(group)))}",)
    place, key = draw(st.sampled_from(places(choices)))
    return choices, place, draw(st.sampled_from(list(wrong_values(key))))


@cache
def whole(choices: tuple[str, ...]) -> dict[str, Any]:
    config = composed(*choices)
    for name in missing_keys(config):
        OmegaConf.update(config, name, "x")
    values: Any = OmegaConf.to_container(config, resolve=True)
    return dict(values)


@cache
def places(choices: tuple[str, ...]) -> list[tuple[tuple[Any, ...], Key]]:
    return list(keys_below(whole(choices), (), ""))


def keys_below(node: Any, place: tuple[Any, ...], path: str) -> Iterator[tuple[tuple[Any, ...], Key]]:
    kinds = TYPES if not place else {}
    if isinstance(node, dict) and "_target_" in node:
        kinds = {name: parameter.kind for name, parameter in parameters_of(node["_target_"], path).items()}
    steps: list[tuple[Any, str]] = []
    if isinstance(node, dict):
        steps = [(name, f"{path}.{name}" if path else name) for name in node]
    if isinstance(node, list):
        steps = [(position, f"{path}[{position}]") for position in range(len(node))]
    for step, below in steps:
        if step in kinds and set(alternatives(kinds[step])) - {Any, Built, type(None)}:
            yield (*place, step), Key(below, kinds[step])
        yield from keys_below(node[step], (*place, step), below)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(mutations())
def test_a_wrong_value_at_any_depth_of_a_run_is_found_and_its_key_is_named(mutation: Any) -> None:
    choices, place, value = mutation
    tree = copy.deepcopy(whole(choices))
    node = tree
    for step in place[:-1]:
        node = node[step]
    node[place[-1]] = value
    with pytest.raises(UserError) as refused:
        check_values(tree, CONF / "train.yaml")
    assert str(refused.value).partition("=")[0].startswith(dict(places(choices))[place].path)


def test_what_is_read_from_source_is_what_python_says_of_the_imported_class() -> None:

    for target in sorted(
        set().union(*(targets(OmegaConf.to_container(OmegaConf.load(p))) for p in CONF.rglob("*.yaml")))
    ):
        if not target.startswith("unlabeled."):
            continue
        called = resolve_name(target)
        function = called.__init__ if inspect.isclass(called) else called
        types = get_type_hints(function, include_extras=True)
        read = parameters_of(target, target)
        assert list(read) == list(inspect.signature(called).parameters), target
        values = {name: each.kind for name, each in read.items() if "Built" not in str(each.kind)}
        assert values == {name: types[name] for name in values}, target
        defaults = {name: each.default for name, each in inspect.signature(called).parameters.items()}
        assert {name: each.default for name, each in read.items()} == defaults, target


def test_no_yaml_has_a_value_that_the_signature_which_takes_it_refuses() -> None:
    looked_at = 0
    for path in sorted(CONF.rglob("*.yaml")):
        for target, values in built(OmegaConf.to_container(OmegaConf.load(path))):
            taken = parameters_of(target, path.stem)
            assert not {*values} - {*taken}, path
            for name, value in values.items():
                if value != "???" and "${" not in str(value):
                    check_value(value, taken[name].kind, f"{path}: {target}.{name}")
                    looked_at += 1
    assert looked_at > 1000


def test_the_reference_of_all_keys_is_up_to_date() -> None:
    assert (CONF.parent / "docs" / "keys.md").read_text() == reference(CONF), "unlabeled reference > docs/keys.md"


def test_every_key_at_the_top_of_a_primary_yaml_has_a_type() -> None:
    for name in COMMANDS:
        content: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
        assert [key for key in content if key not in TYPES and key not in ("defaults", "hydra")] == []


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (0, Positive, "a number, above 0"),
        (2, Share, "a number, from 0 to 1"),
        (True, int, "a whole number"),
        (10**10, int, "a whole number, at most 2147483647"),
        (5, FilePath | None, "a path or null"),
        ([1, 2], tuple[Share, Share, Share], "a list of 3, each a number, from 0 to 1"),
    ],
)
def test_what_is_allowed_is_said_in_words(value: Any, kind: Any, words: str) -> None:
    assert not fits(value, kind)
    assert in_words(kind, value) == words


def test_a_wrong_element_is_named_by_its_place() -> None:
    with pytest.raises(UserError, match=r"views\.std\[1\]=0: must be a number, above 0"):
        check_value([0.2, 0, 0.2], parameters_of("unlabeled.views.pipeline.Views", "views")["std"].kind, "views.std")


def test_marks_of_annotated_in_annotated_are_all_held() -> None:
    kind = parameters_of("unlabeled.views.operations.RandomResizedCrop", "x")["scale"].kind
    assert plain(kind)[0] != kind
    assert fits([0.2, 1.0], kind)
    assert not fits([1.0, 0.2], kind)
