"""States are snapshots: what follows the model and what does not, and lost writes that are told."""

import copy
import gc
import pickle
import subprocess
import sys
import textwrap
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Block, Dense, Node

W = jnp.full((2, 2), 7.0)


def lost(action, make=lambda: nnx.state(Dense(2, 2))):
    """The warnings of an action on a State that is dropped then."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def scope():
            action(make())

        scope()
        gc.collect(1)
    return [w for w in caught if w.category is nnx.SnapshotWarning]


def write(state):
    state.kernel.value = W


WRITES = {
    "value": write,
    "item": lambda s: s.kernel.__setitem__(..., W),
    "index": lambda s: s.kernel.__setitem__(0, 1.0),
    "set_value": lambda s: s.kernel.set_value(W),
    "in place": lambda s: s.__setattr__("kernel", s.kernel.__iadd__(1.0)),
    "twice": lambda s: (write(s), s.kernel.__imul__(2.0)),
    "copy_from": lambda s: s.kernel.copy_from(nnx.Param(W)),
    "update_from_state": lambda s: s.kernel.update_from_state(nnx.Param(W)),
    "update of the State": lambda s: nnx.update(s, {"kernel": W}),
    "all": lambda s: [setattr(v, "value", v * 2) for _, v in s.flat_state()],
    "in a loop": lambda s: [s.kernel.__imul__(2.0) for _ in range(3)],
}


@pytest.mark.parametrize("action", WRITES.values(), ids=WRITES)
def test_a_lost_write_is_told_once(action):
    (warning,) = lost(action)
    text = str(warning.message)
    assert "Param" in text and "float32[2" in text
    assert "nnx.update(model, state)" in text and "copy=False" in text
    assert warning.filename == __file__  # where it was written


SOURCES = {
    "split": lambda m: nnx.split(m)[1],
    "filtered": lambda m: nnx.state(m, nnx.Param, ...)[0],
    "flatten": lambda m: nnx.flatten(m)[1].to_nested_state(),
    "method": lambda m: nnx.State(nnx.state(m)),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_snapshot_tells(source):
    assert len(lost(write, lambda: source(Dense(2, 2)))) == 1


MODEL = Dense(2, 2)
READS = {
    "update": lambda s: nnx.update(Dense(2, 2), s),
    "update by part": lambda s: nnx.update(Dense(2, 2), {"kernel": s.kernel}),
    "merge": lambda s: nnx.merge(nnx.graphdef(MODEL), s),
    "merge, sharing": lambda s: nnx.merge(nnx.graphdef(MODEL), s, copy=False),
    "split": nnx.split,
    "state": nnx.state,
    "clone": nnx.clone,
    "pure": nnx.pure,
    "to_pure_dict": nnx.to_pure_dict,
    "flat_state": lambda s: s.flat_state(),
    "filter": lambda s: s.filter(nnx.Param),
    "merge_state": lambda s: nnx.merge_state(s, nnx.State()),
    "map": lambda s: nnx.map(lambda path, leaf: leaf, s),
    "tree.leaves": jax.tree.leaves,
    "tree.map": lambda s: jax.tree.map(lambda x: x, s),
    "jax.jit": lambda s: jax.jit(lambda s: s)(s),
    "nnx.jit": lambda s: nnx.jit(lambda s: s)(s),
    "a Variable through nnx.jit": lambda s: nnx.jit(lambda v: v * 1.0)(s.kernel),
    "value": lambda s: s.kernel.value,
    "item": lambda s: s.kernel[0, 0],
    "operator": lambda s: s.kernel * 1.0,
    "jnp": lambda s: jnp.sum(s.kernel),
    "NumPy": lambda s: np.asarray(s.kernel),
    "raw_value": lambda s: s.kernel.raw_value,
    "copy": lambda s: s.kernel.copy(),
    "replace": lambda s: s.kernel.replace(tag="x"),
    "assignment": lambda s: setattr(MODEL.kernel, "value", s.kernel),
    "a new Variable": lambda s: nnx.Param(s.kernel),
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "repr": repr,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_is_read_is_not_lost(read):
    assert lost(lambda s: (write(s), read(s))) == []


@pytest.mark.parametrize("read", ["value", "item", "operator", "raw_value", "copy", "repr"])
def test_a_write_after_the_read_is_lost_again(read):
    assert len(lost(lambda s: (write(s), READS[read](s), write(s)))) == 1


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_state_that_is_not_written_says_nothing(read):
    assert lost(read) == []


def test_a_variable_that_is_kept_says_nothing():
    kept = []
    assert lost(lambda s: (write(s), kept.append(s.kernel))) == []
    assert (kept[0].value == W).all()


OWN = {
    "variables": nnx.variables,
    "named_variables": lambda m: nnx.State(m.named_variables()),
    "state, sharing": lambda m: nnx.state(m, copy=False),
    "split, sharing": lambda m: nnx.split(m, copy=False)[1],
    "filtered, sharing": lambda m: nnx.split(m, nnx.Param, ..., copy=False)[1],
}


@pytest.mark.parametrize("source", OWN.values(), ids=OWN)
def test_the_models_own_variables_can_be_written_through_a_state(source):
    model = Dense(2, 2)
    assert lost(write, lambda: source(model)) == []
    assert (model.kernel.value == W).all()


NEW = {
    "merge": lambda m: nnx.state(nnx.merge(*nnx.split(m)), copy=False),
    "clone": lambda m: nnx.state(nnx.clone(m), copy=False),
    "tree.map": lambda m: jax.tree.map(lambda x: x, nnx.state(m)),
    "jax.jit": lambda m: jax.jit(lambda s: s)(nnx.state(m)),
    "grad": nnx.grad(lambda m: m(jnp.ones((1, 2))).sum()),
    "deepcopy": lambda m: copy.deepcopy(nnx.state(m)),
}


@pytest.mark.parametrize("source", NEW.values(), ids=NEW)
def test_variables_that_are_no_snapshot_say_nothing(source):
    assert lost(write, lambda: source(Dense(2, 2))) == []


# -- where the marks must not be in the way -------------------------------------------------------


def test_a_variable_of_a_snapshot_in_another_object():
    state = nnx.state(Dense(2, 2))
    model = Node(w=state.kernel, parts=[state.bias])

    @nnx.jit
    def step(model):
        model.w.value = model.w * 0.0
        model.parts[0].tag = "seen"

    step(model)
    assert (state.kernel.value == 0).all() and state.bias.tag == "seen"
    model.w.value += 1.0
    nnx.update(model, {"w": W})
    assert (nnx.state(model).w.value == W).all()
    assert lost(lambda s: nnx.jit(lambda v: v.set_value(W))(s.kernel)) == []


def test_a_snapshot_belongs_to_its_trace():
    state = nnx.state(Dense(2, 2))
    with pytest.raises(nnx.TraceContextError, match=r"Param.*float32\[2,2\]"):
        jax.jit(lambda x: state.kernel.set_value(x))(W)
    assert not (state.kernel.value == W).any()
    jax.jit(lambda: write(nnx.state(MODEL)) or jnp.ones(()))  # never called: nothing was traced


def test_inside_a_trace_too():
    def step(model):
        write(nnx.state(model))
        return model(jnp.ones((1, 2)))

    assert len(lost(jax.jit(step), lambda: Dense(2, 2))) == 1


def test_hooks_still_run():
    cell = nnx.Param(jnp.ones(2), on_get_value=lambda v, x: x * 10, on_set_value=lambda v, x: x + 1)
    state = nnx.state(Node(w=cell))
    state.w.value = jnp.zeros(2)
    assert (state.w.value == 10).all() and (state.w.value == 10).all()
    plain = nnx.state(Node(w=nnx.Param(jnp.ones(2))))
    plain.w.value = jnp.zeros(2)
    assert (plain.w.value == 0).all() and (plain.w.value == 0).all()


def test_a_program_that_ends_with_the_state_is_told():
    program = """
    from refax import nnx
    state = nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    state.kernel.value *= 2.0
    state.bias.value += 1.0
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert ran.stderr.count("SnapshotWarning") == 1


# -- the two programs -----------------------------------------------------------------------------


def trained(model, steps):
    for _ in range(steps):
        for _, p in model.named_parameters():
            p.value += 1.0


def test_early_stopping():
    model = Block()
    best, best_loss = None, 3.0
    for loss in (2.0, 1.0, 5.0):
        trained(model, 1)
        if loss < best_loss:
            best, best_loss, expected = nnx.state(model, nnx.Param), loss, copy.deepcopy(model)
    assert best is not None and not (best.layers[0].bias == model.layers[0].bias.value).any()
    nnx.update(model, best)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(expected))


def test_writing_through_a_state():
    def zero(model, **how):
        for _, p in nnx.state(model, nnx.Param, **how).flat_state():
            p.value = jnp.zeros_like(p.value)

    model = Dense(2, 2)
    assert len(lost(zero, lambda: model)) == 1 and (model.kernel.value != 0).any()
    assert lost(lambda m: zero(m, copy=False), lambda: model) == []
    assert (model.kernel.value == 0).all()


# -- sharing on the way back ----------------------------------------------------------------------


def test_merge_and_unflatten_that_share():
    model = Block()
    graphdef, state = nnx.split(model, copy=False)
    for how in ({"copy": False}, {"recreate_variables": False}):
        other = nnx.merge(graphdef, state, **how)
        assert other is not model and other.tied is model.tied is other.layers[0].kernel
    other = nnx.unflatten(graphdef, state, copy_variables=False)
    assert other.tied is model.tied
    assert nnx.merge(graphdef, state).tied is not model.tied
    params, rest = nnx.state(model, nnx.Param, ..., copy=False)
    assert nnx.merge(graphdef, params, rest, copy=False).layers[1].bias is model.layers[1].bias


def test_a_snapshot_that_becomes_an_object():
    graphdef, state = nnx.split(Dense(2, 2))
    model = nnx.merge(graphdef, state, copy=False)
    assert model.kernel is state.kernel
    del state
    held = [model]
    del model
    assert lost(lambda _: write(held.pop())) == []
