"""Filters: every form, every combination, and the checks of the verbs that take them."""

import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Block, Count, Dense, Node, Stateful, paths_of

PARAM = nnx.Param(jnp.ones(()), tag="decay")
STAT = nnx.BatchStat(jnp.ones(()))
ARRAY = jnp.ones(())
PATH = ("blocks", 3, "kernel")


class Special(nnx.Param):
    pass


@pytest.mark.parametrize(
    ("filter", "param", "stat", "array"),
    [
        (nnx.Param, True, False, False),
        (nnx.Variable, True, True, False),
        (nnx.VariableState, True, True, False),
        (Special, False, False, False),
        (..., True, True, True),
        (True, True, True, True),
        (None, False, False, False),
        (False, False, False, False),
        ("decay", True, False, False),
        ("other", False, False, False),
        (lambda path, value: "kernel" in path, True, True, True),
        (lambda path, value: value is STAT, False, True, False),
        ((nnx.BatchStat, "decay"), True, True, False),
        ([nnx.BatchStat, None], False, True, False),
        ((), False, False, False),
        (nnx.OfType(nnx.Param), True, False, False),
        (nnx.WithTag("decay"), True, False, False),
        (nnx.PathContains("kernel"), True, True, True),
        (nnx.PathContains(3), True, True, True),
        (nnx.PathContains("3"), False, False, False),
        (nnx.PathContains("kern"), False, False, False),
        (nnx.PathContains("kern", exact=False), True, True, True),
        (nnx.PathIn(PATH, ("other",)), True, True, True),
        (nnx.PathIn(("kernel",)), False, False, False),
        (nnx.Any(nnx.Param, nnx.BatchStat), True, True, False),
        (nnx.Any(), False, False, False),
        (nnx.All(nnx.Variable, "decay"), True, False, False),
        (nnx.All(), True, True, True),
        (nnx.Not(nnx.Param), False, True, True),
        (nnx.Not(nnx.Any(nnx.Param, nnx.BatchStat)), False, False, True),
        (nnx.All(nnx.Not("decay"), nnx.Variable), False, True, False),
        (nnx.Everything(), True, True, True),
        (nnx.Nothing(), False, False, False),
    ],
)
def test_forms(filter, param, stat, array):
    predicate = nnx.to_predicate(filter)
    assert [bool(predicate(PATH, x)) for x in (PARAM, STAT, ARRAY)] == [param, stat, array]


def test_a_type_matches_subclasses():
    assert nnx.to_predicate(nnx.Param)((), Special(jnp.ones(())))
    assert nnx.to_predicate(nnx.Intermediate)((), nnx.Perturbation(jnp.ones(())))


@pytest.mark.parametrize("bad", [1, 1.5, object()])
def test_what_is_no_filter(bad):
    with pytest.raises(TypeError, match="must be a filter"):
        nnx.to_predicate(bad)
    with pytest.raises(TypeError, match="must be a filter"):
        nnx.state(Dense(1, 1), (nnx.Param, bad))


def test_filters_are_compared_by_content():
    assert nnx.to_predicate((nnx.Param, "a")) == nnx.to_predicate([nnx.Param, "a"])
    assert hash(nnx.Not(nnx.Param)) == hash(nnx.Not(nnx.Param))
    assert nnx.Any(nnx.Param) != nnx.All(nnx.Param)
    assert nnx.PathIn(("a",), ("b",)) == nnx.PathIn(("b",), ("a",))
    assert nnx.WithTag("a") != nnx.WithTag("b")


def test_repr():
    assert repr(nnx.Not(nnx.Param)) == "Not(OfType(Param))"
    assert repr(nnx.Any("a", ...)) == "Any(WithTag('a'), Everything())"


def test_the_first_match_counts():
    model = Block()
    kernels, params, rest = nnx.state(model, nnx.PathContains("kernel"), nnx.Param, ...)
    assert paths_of(kernels) == [("layers", 0, "kernel"), ("layers", 1, "kernel")]
    assert ("layers", 0, "bias") in paths_of(params)
    assert all("kernel" not in p for p in paths_of(params))
    assert paths_of(rest) == [("offset",), ("parts", "norm", "count"), ("parts", "norm", "mean")]


def test_filters_on_metadata_see_changes_of_it():
    model = Node(w=nnx.Param(jnp.ones(())))
    assert paths_of(nnx.state(model, "decay")) == []
    model.w.tag = "decay"
    assert paths_of(nnx.state(model, "decay")) == [("w",)]


def test_callables_are_asked_every_time():
    model = Node(a=nnx.Param(jnp.ones(())), b=nnx.Param(jnp.ones(())))
    wanted = "a"
    f = lambda path, value: path == (wanted,)  # noqa: E731
    assert paths_of(nnx.state(model, f)) == [("a",)]
    wanted = "b"
    assert paths_of(nnx.state(model, f)) == [("b",)]
    by_value = lambda path, value: value.value == 1  # noqa: E731
    assert len(paths_of(nnx.state(model, by_value))) == 2
    model.a.value = jnp.zeros(())
    assert paths_of(nnx.state(model, by_value)) == [("b",)]


def test_types_of_arrays_are_asked_every_time():
    model = Node(x=np.ones(2))
    assert paths_of(nnx.state(model, np.ndarray)) == [("x",)]
    model.x = jnp.ones(2)
    assert paths_of(nnx.state(model, np.ndarray)) == []


def test_callables_within_combinations_are_asked_every_time():
    model = Node(a=nnx.Param(jnp.ones(())))
    f = nnx.All(nnx.Param, lambda path, value: value.value == 1)
    assert paths_of(nnx.state(model, f)) == [("a",)]
    model.a.value = jnp.zeros(())
    assert paths_of(nnx.state(model, f)) == []


@pytest.mark.parametrize("verb", [nnx.split, nnx.state, nnx.variables])
def test_ellipsis_must_be_last(verb):
    model = Stateful()
    with pytest.raises(ValueError, match=r"`\.\.\.` \(or True\) matches everything.*BatchStat"):
        verb(model, ..., nnx.BatchStat)
    with pytest.raises(ValueError, match="Put|put"):
        verb(model, True, nnx.BatchStat)
    verb(model, nnx.Param, ...)


def test_filters_must_be_exhaustive_where_the_verb_says_so():
    model = Block()
    with pytest.raises(ValueError) as caught:
        nnx.split(model, nnx.Param)
    text = str(caught.value)
    assert "not exhaustive" in text and "`offset`" in text and "`parts.norm.count`" in text
    assert "..." in text
    with pytest.raises(ValueError, match="not exhaustive"):
        nnx.split_state(nnx.state(model), nnx.Param, Count)
    assert len(nnx.split(model, nnx.Param, Count, nnx.BatchStat, ...)) == 5


def test_a_type_is_found_by_the_attribute_type_too():
    class Stub:
        type = nnx.Param

    class Typed(nnx.Module):
        def __init__(self):
            self.type = nnx.Param

    assert nnx.OfType(nnx.Param)((), Stub()) and not nnx.OfType(nnx.BatchStat)((), Stub())
    assert not nnx.OfType(nnx.Param)((), Typed()) and not nnx.OfType(nnx.Param)((), jnp.ones(1))
