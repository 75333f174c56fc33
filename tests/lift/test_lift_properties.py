"""Random changes of random graphs inside a transform: the same as eagerly, or nothing at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refax import nnx
from tests import strategies as graphs
from tests.models import Node
from tests.transforms.cases import CASES
from tests.transforms.changes import tracers_in

pytestmark = pytest.mark.usefixtures("strict_numerics")

# Each of these enters and leaves in a way of its own: compiled, under an eager trace with values
# that are no tracers, with several groups, with values given out explicitly.
TRANSFORMS = {c.name: c for c in CASES if c.name in ("jit", "remat", "grad", "cond", "custom_vjp")}
X = jnp.ones(2)

each = pytest.mark.parametrize("name", TRANSFORMS)
seeds = st.integers(0, 2**32 - 1)
some_changes = st.lists(graphs.traced_changes, min_size=1, max_size=5)


def side_by_side(seed: int, size: int) -> tuple[Node, Node]:
    """A graph and its twin, each with a list of all its objects, also for those that get lost."""
    pair = []
    for _ in range(2):
        root = graphs.make_graph(seed, size)
        pair.append(Node(root=root, objects=tuple(graphs.objects_of(root))))
    return pair[0], pair[1]


@each
@settings(max_examples=25)
@given(seed=seeds, size=st.integers(1, 4), changes=some_changes)
def test_changes_inside_are_changes_outside(name, seed, size, changes):
    ours, theirs = side_by_side(seed, size)

    def body(root, x):
        for change in changes:
            graphs.apply(root, change)
        return x

    TRANSFORMS[name].make(body)(ours.root, X)
    body(theirs.root, X)
    assert graphs.difference(ours, theirs) == ""
    assert tracers_in(ours) == []
    assert nnx.graphdef(ours.root) == nnx.graphdef(theirs.root)
    np.testing.assert_allclose(
        nnx.jit(lambda root: graphs.total(root))(ours.root),
        graphs.total(theirs.root),
        rtol=1e-4,
        atol=1e-4,
    )


@each
@settings(max_examples=25)
@given(seed=seeds, size=st.integers(1, 4), changes=some_changes)
def test_nothing_happens_if_the_function_raises(name, seed, size, changes):
    ours, theirs = side_by_side(seed, size)

    def body(root, x):
        for change in changes:
            graphs.apply(root, change)
        raise KeyError("mine")

    before = graphs.objects_of(ours.root)
    with pytest.raises(KeyError, match="mine"):
        TRANSFORMS[name].make(body)(ours.root, X)
    assert graphs.difference(ours, theirs) == ""
    assert all(a is b for a, b in zip(before, graphs.objects_of(ours.root), strict=True))
    assert tracers_in(ours) == []


@each
@settings(max_examples=15)
@given(seed=seeds, size=st.integers(1, 4), made=st.integers(0, 2**32 - 1))
def test_results_are_as_if_called_eagerly(name, seed, size, made):
    """Inputs that are returned are themselves, and new objects may refer to them."""
    ours, theirs = side_by_side(seed, size)

    def body(root, x):
        new = graphs.make_graph(made, 3)
        new.root = root
        objects = [x for x in graphs.objects_of(root) if isinstance(x, (Node, nnx.Variable))]
        return objects[::2], new, [new, root]

    with_ours = TRANSFORMS[name].make(body)(ours.root, X)
    with_theirs = body(theirs.root, X)
    assert graphs.difference((ours, with_ours), (theirs, with_theirs)) == ""
    _, new, again = with_ours
    assert again[0] is new and again[1] is ours.root


@settings(max_examples=25)
@given(seed=seeds, size=st.integers(1, 5))
def test_the_identity_returns_the_very_objects(seed, size):
    root = graphs.make_graph(seed, size)
    before = graphs.objects_of(root)
    values = [x for x in jax.tree.leaves(nnx.state(root))]
    assert nnx.jit(lambda root: root)(root) is root
    after = graphs.objects_of(root)
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert all(a is b for a, b in zip(values, jax.tree.leaves(nnx.state(root)), strict=True))


@settings(max_examples=25)
@given(seed=seeds, changes=st.lists(graphs.traced_changes, min_size=1, max_size=4))
def test_steps_with_changes_between_them(seed, changes):
    """Inside and outside by turns, with the plans of before."""
    ours, theirs = side_by_side(seed, 3)

    def step(root):
        for obj in graphs.objects_of(root):
            if isinstance(obj, graphs.VARIABLE_TYPES):
                obj.value = obj.value + 1

    f = nnx.jit(lambda root: step(root))
    for change in changes:
        f(ours.root)
        step(theirs.root)
        graphs.apply(ours.root, change)
        graphs.apply(theirs.root, change)
        assert graphs.difference(ours, theirs) == ""
