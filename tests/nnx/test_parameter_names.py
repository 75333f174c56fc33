"""Every parameter that programs give by name has that name; by name is the same as by position."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.nnx.parameters import PARAMETERS

BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_name_binds(name):
    found = nnx
    for part in name.split("."):
        found = getattr(found, part)
    found = found.__init__ if inspect.isclass(found) else found
    parameters = inspect.signature(found).parameters
    if any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return  # what such keywords mean is shown by the calls below and by the tests of each
    own = {n for n, p in parameters.items() if p.kind in BY_NAME}
    assert set(PARAMETERS[name].split()) - own == set()


X = jnp.ones((1, 2))


def model():
    return nnx.Linear(2, 3, rngs=nnx.Rngs(0))


def state(scale=1.0):
    return nnx.State({"a": nnx.Param(jnp.ones(2) * scale), "b": {"c": jnp.zeros(1)}})


def twice(x):
    return 2 * x


def squared(x):
    return (x * x).sum()


def replaced(pure, **by_name):
    made = state()
    nnx.replace_by_pure_dict(made, *pure, **by_name)
    return made


PURE = {"a": jnp.zeros(2), "b": {"c": jnp.ones(1)}}
FLAT = [(("a",), jnp.ones(2)), (("b", "c"), jnp.zeros(1))]

# name → (positional arguments, the same by name); each is called both ways.
CALLS = {
    "clone": ((model(),), {"node": model()}),
    "split": ((model(),), {"node": model()}),
    "state": ((model(),), {"node": model()}),
    "variables": ((model(),), {"node": model()}),
    "from_flat_state": ((FLAT,), {"flat_state": FLAT}),
    "to_flat_state": ((state(),), {"state": state()}),
    "to_pure_dict": ((state(),), {"state": state()}),
    "restore_int_paths": (({"0": 1},), {"pure_dict": {"0": 1}}),
    "get_abstract_model": ((model, None), {"init_fn": model, "mesh": None}),
    "make_causal_mask": ((X,), {"x": X}),
    "pure": ((state(),), {"tree": state()}),
    "map_state": ((lambda p, x: x * 2, state()), {"f": lambda p, x: x * 2, "state": state()}),
    "fori_loop": (
        (0, 3, lambda i, x: x + i, 1),
        {"lower": 0, "upper": 3, "body_fun": lambda i, x: x + i, "init_val": 1},
    ),
    "while_loop": (
        (lambda x: x < 3, lambda x: x + 1, 0),
        {"cond_fun": lambda x: x < 3, "body_fun": lambda x: x + 1, "init_val": 0},
    ),
    "jvp": ((squared, (X,), (X,)), {"f": squared, "primals": (X,), "tangents": (X,)}),
}


def leaves(x):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(x)]


@pytest.mark.parametrize("name", CALLS)
def test_by_name_is_by_position(name):
    positional, named = CALLS[name]
    function = getattr(nnx, name)
    jax.tree.map(
        np.testing.assert_array_equal, leaves(function(*positional)), leaves(function(**named))
    )


@pytest.mark.parametrize("parameter", ["fun", "f"])
@pytest.mark.parametrize("name", "jit grad value_and_grad vmap remat make_jaxpr checkify".split())
def test_a_function_by_name_is_transformed(name, parameter):
    transform = getattr(nnx, name)
    function = squared if "grad" in name else twice
    expected, given = transform(function)(X), transform(**{parameter: function})(X)
    assert str(expected) == str(given)
    assert callable(transform()(function))  # with no function, it is a decorator


def test_the_jitted_function_by_name():
    jitted = nnx.jit(fun=twice, static_argnames=())
    assert type(jitted) is type(nnx.jit(twice)) and float(jitted(2.0)) == 4.0


def test_pure_dicts_by_name():
    by_position, by_name = replaced((PURE,)), replaced((), pure_dict=PURE)
    jax.tree.map(np.testing.assert_array_equal, leaves(by_position), leaves(by_name))
    other = state()
    other.replace_by_pure_dict(pure_dict=PURE)
    jax.tree.map(np.testing.assert_array_equal, leaves(by_position), leaves(other))


def test_contexts_by_name():
    with nnx.update_context(tag="here"):
        with nnx.split_context(ctxtag="here") as outer:
            graphdef, values = outer.split(model())
        with nnx.merge_context(ctxtag="here", inner=True) as inner:
            assert type(inner.merge(graphdef, values)) is nnx.Linear


def test_hooks_by_either_name():
    seen = []

    def noted(name):
        return lambda variable, value: seen.append(name) or value

    for names in (("on_create_value", "on_get_value"), ("create_value_hooks", "get_value_hooks")):
        seen.clear()
        hooks = {name: (noted(1), noted(2)) for name in names}
        init = nnx.with_metadata(nnx.initializers.ones, **hooks)
        kernel = nnx.Linear(2, 3, kernel_init=init, rngs=nnx.Rngs(0)).kernel
        assert seen == [1, 2] and kernel.value is not None and seen == [1, 2, 1, 2]
    boxed = nnx.VariableMetadata(jnp.ones(2), on_create_value=(noted(3),), metadata={"tag": "t"})
    assert nnx.Param(boxed).tag == "t" and seen[-1] == 3


def test_a_copy_has_arrays_of_its_own_where_asked():
    m = model()
    assert nnx.clone(node=m).kernel.value is m.kernel.value
    copied = nnx.clone(m, variables=True, arrays=True)
    assert copied.kernel.value is not m.kernel.value
    np.testing.assert_array_equal(copied.kernel, m.kernel)
