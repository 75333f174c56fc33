"""Values from outside: numbers, NumPy arrays and lists become arrays of JAX on entering a Variable.

Every way into a Variable × every kind of value × every Variable: one array, of the right dtype, in
the right place, that does not follow the giver's buffer.
"""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from refax import nnx
from tests.models import Node

# -- ways and values -------------------------------------------------------------------------------


def _replace_by_pure_dict(m: Node, x: Any) -> None:
    state = nnx.state(m)
    nnx.replace_by_pure_dict(state, {"w": x})
    nnx.update(m, state)


def _on_the_host(m: Node, x: Any) -> nnx.State:
    """A State of NumPy arrays, as `jax.device_get` gives one."""
    host = x if isinstance(x, (np.ndarray, np.generic)) else np.asarray(x)
    return jax.tree.map(lambda _: host, nnx.state(m))


WAYS = {
    "value": lambda m, x: setattr(m.w, "value", x),
    "[...]": lambda m, x: m.w.__setitem__(..., x),
    "[:]": lambda m, x: m.w.__setitem__(slice(None), x) if m.w.ndim else m.w.__setitem__(..., x),
    "set_value": lambda m, x: m.w.set_value(x),
    "update by a dict": lambda m, x: nnx.update(m, {"w": x}),
    "update by a State": lambda m, x: nnx.update(m, _on_the_host(m, x)),
    "update of a Variable": lambda m, x: nnx.update(m.w, {"value": x}),
    "copy_from": lambda m, x: m.w.copy_from(_on_the_host(m, x)["w"]),
    "update_from_state": lambda m, x: m.w.update_from_state(_on_the_host(m, x)["w"]),
    "replace_by_pure_dict": _replace_by_pure_dict,
    "hook": lambda m, x: m.w.replace(on_set_value=lambda v, new: x).__setitem__(..., m.w.value),
}
BUFFERS = {
    "float64": np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]),
    "float32": np.arange(1, 9, dtype=np.float32),
    "float16": np.arange(1, 9, dtype=np.float16),
    "int64": np.arange(1, 9),
    "uint8": np.arange(1, 9, dtype=np.uint8),
    "bfloat16": np.arange(1, 9).astype(jnp.bfloat16),
    "a view": np.arange(1, 17)[::2] // 2 + 1,
    "read-only": np.frombuffer(np.arange(1, 9, dtype=np.float32).tobytes(), np.float32),
    "list": [1, 2, 3, 4, 5, 6, 7, 8],
    "list of floats": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
}
DTYPES = ["float32", "bfloat16", "float16", "int32", "uint8", "complex64"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("buffer", BUFFERS)
def test_what_enters_is_an_array_of_the_dtype_that_was_there(way: str, buffer: str) -> None:
    for dtype in DTYPES:
        model = Node(w=nnx.Param(jnp.zeros(8, dtype)))
        given = BUFFERS[buffer]
        given = given.copy() if isinstance(given, np.ndarray) and buffer != "read-only" else given
        WAYS[way](model, given)
        if way == "hook":
            continue
        value = model.w.value
        assert isinstance(value, jax.Array)
        assert value.dtype == dtype
        assert not value.weak_type
        np.testing.assert_array_equal(np.asarray(value, np.complex64), range(1, 9))
        if isinstance(given, np.ndarray) and given.flags.writeable:
            given[:] = 0
            np.testing.assert_array_equal(np.asarray(value, np.complex64), range(1, 9))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [2, 2.0, True, np.float64(2), np.int8(2), np.array(2)], ids=repr)
def test_numbers_enter_as_scalars(way: str, number: Any) -> None:
    for dtype in ("float32", "bfloat16", "int32"):
        model = Node(w=nnx.Variable(jnp.array(0, dtype)))
        WAYS[way](model, number)
        if way == "hook":
            continue
        assert isinstance(model.w.value, jax.Array)
        assert model.w.dtype == dtype
        assert model.w.shape == ()
        assert not model.w.weak_type
        assert model.w.value == number


def test_a_set_hook_may_return_numbers() -> None:
    v = nnx.Variable(jnp.zeros(2, "bfloat16"), on_set_value=lambda v, x: np.array([1.0, 2.0]))
    v.value = jnp.ones(2)
    assert isinstance(v.raw_value, jax.Array)
    assert v.dtype == jnp.bfloat16
    made = nnx.Variable(3, on_create_value=lambda v, x: np.full(2, x))
    assert isinstance(made.raw_value, jax.Array)


# -- new Variables ---------------------------------------------------------------------------------

MAKERS = {
    "Param": nnx.Param,
    "BatchStat": lambda x: nnx.BatchStat(x, tag=1),
    "with_metadata": lambda x: nnx.Param(nnx.with_metadata(lambda: x, tag=1)()),
    "replace": lambda x: nnx.Param(jnp.zeros(3, "bfloat16")).replace(x),
    "of a Variable": lambda x: nnx.Param(nnx.Param(jnp.ones(1)).replace(x)),
    "map": lambda x: nnx.map(lambda _, leaf: x, Node(w=nnx.Param(jnp.ones(1)))).w,
}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.ones(2), "float32"),
        (np.ones(2, np.float16), "float16"),
        (np.ones(2, jnp.bfloat16), "bfloat16"),
        (np.ones(2, np.int64), "int32"),
        (np.ones(2, np.uint8), "uint8"),
        (np.ones(2, bool), "bool"),
        (np.ones(2, complex), "complex64"),
        (np.ones((0, 3)), "float32"),
        (np.float64(1), "float32"),
        (1, "int32"),
        (1.0, "float32"),
        (True, "bool"),
        (1j, "complex64"),
        ([1, 2], "int32"),
        ([[1.0], [2]], "float32"),
    ],
    ids=repr,
)
def test_a_new_variable_has_the_dtype_of_what_is_given(make: str, given: Any, dtype: str) -> None:
    value = MAKERS[make](given).value
    assert isinstance(value, jax.Array)
    assert value.dtype == dtype
    np.testing.assert_array_equal(value, given)
    if isinstance(given, np.ndarray) and given.size:
        given[:] = 0
        assert np.asarray(value).all()
        given[:] = 1


def test_wide_dtypes_stay_where_they_are_enabled() -> None:
    with jax.enable_x64(True):
        assert nnx.Param(np.ones(2)).dtype == np.float64
        assert nnx.Variable(2**40).value == 2**40
        narrow = nnx.Param(jnp.ones(2, jnp.float32))
        narrow.value = np.ones(2)
        assert narrow.dtype == np.float32
        narrow += np.ones(2)
        assert narrow.dtype == np.float32
        wide = nnx.Param(jnp.ones(2, jnp.float64))
        wide.value = np.full(2, 1 + 1e-12, np.float64)
        assert wide.value[0] > 1


# -- what is no number stays as it is --------------------------------------------------------------

OBJECT = object()
ARRAY = jnp.ones(2)


@pytest.mark.parametrize(
    "value",
    [
        "text",
        b"bytes",
        None,
        OBJECT,
        ARRAY,
        (),
        [],
        {},
        (ARRAY, ARRAY),
        [ARRAY],
        {"a": ARRAY, "b": [None, "x"]},
        jax.ShapeDtypeStruct((2,), jnp.float32),
        jax.random.key(0),
        jnp.tanh,
        np.array(["a", "b"]),
        np.array([None, OBJECT]),
        np.array(["2020-01-01"], "datetime64[D]"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_holds_no_numbers_from_outside_is_kept_itself(value: Any) -> None:
    v = nnx.Variable(value)
    assert v.value is value
    w = nnx.Variable(jnp.ones(2))
    w.value = value
    assert w.value is value
    assert w.replace(value).value is value


def test_numbers_in_pytrees_become_arrays() -> None:
    buffer = np.ones(2)
    v = nnx.Variable({"a": buffer, "b": (1, [2.0, "x", None]), "c": ARRAY})
    buffer[:] = 0
    assert isinstance(v.value["a"], jax.Array)
    assert v.value["a"].sum() == 2
    one, (two, text, nothing) = v.value["b"]
    assert isinstance(one, jax.Array)
    assert isinstance(two, jax.Array)
    assert (text, nothing) == ("x", None)
    assert v.value["c"] is ARRAY
    v.value = {"a": np.zeros(2), "b": (1.0, [2, "y", None]), "c": np.ones(2)}
    assert v.value["b"][0].dtype == jnp.int32
    assert v.value["b"][1][0].dtype == jnp.float32
    ragged = nnx.Variable([[1, 2], [3]])
    assert jax.tree.structure(ragged.value) == jax.tree.structure([[0, 0], [0]])
    pair = nnx.Variable([ARRAY, ARRAY])
    pair.value = [1, 2]
    assert isinstance(pair.value, list)


def test_a_host_state_may_be_made_on_purpose_and_comes_back_as_arrays() -> None:
    model = Node(w=nnx.Param(jnp.arange(3.0)), n=nnx.Variable(jnp.array(1)))
    graphdef, state = nnx.split(model)
    host = jax.device_get(state)
    assert isinstance(host.w.value, np.ndarray)
    for back in (
        nnx.merge(graphdef, host),
        nnx.merge(graphdef, nnx.to_pure_dict(host)),
        nnx.unflatten(graphdef, jax.device_get(nnx.flatten(model)[1])),
    ):
        assert isinstance(back.w.value, jax.Array)
        assert isinstance(back.n.value, jax.Array)
        np.testing.assert_array_equal(back.w.value, model.w.value)
    host.w.value.setflags(write=False)
    nnx.update(model, pickle.loads(pickle.dumps(host)))
    assert isinstance(model.w.value, jax.Array)


# -- place -----------------------------------------------------------------------------------------

mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
PLACES = {
    "sharded": NamedSharding(mesh, P("model")),
    "replicated": NamedSharding(mesh, P()),
    "another device": SingleDeviceSharding(jax.devices()[3]),
    "host memory": SingleDeviceSharding(jax.devices()[0], memory_kind="unpinned_host"),
    "sharded host memory": NamedSharding(mesh, P("model"), memory_kind="unpinned_host"),
}


@pytest.mark.parametrize("way", [w for w in WAYS if w != "hook"])
@pytest.mark.parametrize("place", PLACES)
def test_what_enters_goes_where_the_variable_is(way: str, place: str) -> None:
    for given in (np.arange(8), np.arange(8.0), list(range(8))):
        model = Node(w=nnx.Param(jax.device_put(jnp.zeros(8), PLACES[place])))
        WAYS[way](model, given)
        assert model.w.value.sharding == PLACES[place]
        assert model.w.value.committed
        np.testing.assert_array_equal(model.w.value, range(8))


@pytest.mark.parametrize("place", PLACES)
def test_what_is_computed_in_place_stays_where_the_variable_is(place: str) -> None:
    w = nnx.Param(jax.device_put(jnp.zeros(8), PLACES[place]))
    w += 1
    w *= np.arange(8.0)
    w[2] = 5.0
    w[jnp.array([0, 1])] = np.ones(2)
    assert w.value.sharding == PLACES[place]
    np.testing.assert_array_equal(w, [1, 1, 5, 3, 4, 5, 6, 7])


def test_of_another_shape_it_stays_on_the_devices() -> None:
    for spec in (P("model"), P()):
        v = nnx.Param(jax.device_put(jnp.zeros(8), NamedSharding(mesh, spec)))
        v.value = np.zeros(16)
        assert v.value.sharding == NamedSharding(mesh, spec)
        v.value = np.zeros(3)
        assert v.value.sharding == NamedSharding(mesh, P())
        v.value = 0
        assert v.value.sharding == NamedSharding(mesh, P())
    v = nnx.Param(jax.device_put(jnp.zeros(8), NamedSharding(mesh, P("model"))))
    assert v.replace(np.zeros(16, np.float16)).value.sharding == NamedSharding(mesh, P("model"))


def test_an_array_without_a_place_of_its_own_takes_the_place_in_an_update() -> None:
    model = Node(w=nnx.Param(jax.device_put(jnp.zeros(8), PLACES["sharded"])))
    nnx.update(model, {"w": jnp.ones(8)})
    assert model.w.value.sharding == PLACES["sharded"]
    nnx.update(model, {"w": jax.device_put(jnp.ones(8), PLACES["replicated"])})
    assert model.w.value.sharding == PLACES["replicated"]


def test_an_abstract_model_takes_dtype_and_place() -> None:
    abstract = jax.ShapeDtypeStruct((8,), jnp.bfloat16, sharding=PLACES["sharded"])
    model = Node(w=nnx.Param(abstract))
    nnx.update(model, {"w": np.arange(8.0)})
    assert model.w.value.sharding == PLACES["sharded"]
    assert model.w.dtype == jnp.bfloat16


def test_arrays_with_no_place_of_their_own_stay_so_and_nothing_is_compiled_again() -> None:
    model = Node(w=nnx.Param(np.ones(2)), n=nnx.Variable(0))
    f = nnx.jit(lambda m: m.w.sum() + m.n)
    f(model)
    with nnx.assert_max_traces(0):
        for given in (np.zeros(2), [1, 2], jnp.ones(2)):
            model.w.value = given
            model.n.value = 1
            nnx.update(model, {"w": np.ones(2), "n": 2})
            f(model)
    assert not model.w.value.committed


# -- in a trace ------------------------------------------------------------------------------------

TRANSFORMS = {
    "jit": nnx.jit,
    "remat": nnx.remat,
    "vmap": lambda f: nnx.vmap(f, axis_size=2),
    "cond": lambda f: lambda m: nnx.cond(True, f, lambda m: None, m),
    "scan": lambda f: nnx.scan(
        lambda m: (f(m), m)[1], length=3, in_axes=nnx.Carry, out_axes=nnx.Carry
    ),
    "fori_loop": lambda f: lambda m: nnx.fori_loop(0, 2, lambda i, m: (f(m), m)[1], m),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_numbers_that_are_written_in_a_trace(transform: str) -> None:
    def write(m: Node) -> None:
        m.w.value = np.full(m.w.shape, 2.0)
        m.n.value = 3
        m.h[0] = 1
        nnx.update(m, {"b": np.ones(2)})

    def make() -> Node:
        cells = {"w": jnp.zeros((2, 2)), "n": jnp.zeros(2, int), "h": jnp.zeros((2, 2), "bfloat16")}
        if transform != "vmap":
            cells["n"] = jnp.array(0)
        return Node(**{k: nnx.Variable(x) for k, x in cells.items()}, b=nnx.Param(jnp.zeros((2,))))

    if transform == "vmap":
        model = Node(**{k: nnx.Variable(x) for k, x in vars(make()).items()})
        model.b = nnx.Param(jnp.zeros((2, 2)))
    else:
        model = make()
    TRANSFORMS[transform](write)(model)
    assert {k: str(v.dtype) for k, v in vars(model).items()} == {
        "w": "float32",
        "n": "int32",
        "h": "bfloat16",
        "b": "float32",
    }
    assert model.n.value.sum() == (6 if transform == "vmap" else 3)
    assert model.w.value.sum() == 8


# -- numbers that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "given"),
    [
        ("int32", 1.5),
        ("int32", np.array([1.0, 2.5])),
        ("int32", float("nan")),
        ("int8", 300),
        ("uint8", -1),
        ("int32", 2**40),
        ("bool", 2),
        ("float32", 1j),
        ("int32", 1j),
    ],
)
def test_numbers_that_the_dtype_cannot_hold_are_refused(dtype: str, given: Any) -> None:
    start = jnp.zeros(np.shape(given), dtype)
    model = Node(w=nnx.Variable(start))
    with pytest.raises(nnx.StructureError, match=rf"`Node\.w`, whose dtype is {dtype}.*\n.*Cure"):
        model.w.value = given
    with pytest.raises(nnx.StructureError, match=rf"`w`, whose dtype is {dtype}"):
        nnx.update(model, {"w": given})
    assert model.w.value is start


@pytest.mark.parametrize("traced", [False, True])
def test_an_array_of_another_dtype_in_an_update_is_cast_or_refused(traced: bool) -> None:
    def run(model: Node, x: jax.Array) -> None:
        nnx.update(model, {"w": x})

    update = nnx.jit(run) if traced else run
    model = Node(w=nnx.Param(jnp.zeros(2, "bfloat16")))
    for dtype in ("float32", "float16", "int32", "bool"):
        update(model, jnp.ones(2, dtype))
        assert model.w.dtype == jnp.bfloat16
    counts = Node(w=nnx.Variable(jnp.zeros(2, int)))
    with pytest.raises(nnx.StructureError, match="`w`, whose dtype is int32"):
        update(counts, jnp.full(2, 1.5))
    assert counts.w.value.sum() == 0
    other = Node(w=nnx.Variable((jnp.zeros(2, "bfloat16"), jnp.array(0))))
    nnx.update(other, {"w": (np.ones(2), 3)})
    nnx.update(other, {"w": (jnp.ones(2), 3)})
    assert other.w.value[0].dtype == jnp.bfloat16


def test_in_place_operators_keep_the_dtype_beside_arrays_of_numpy() -> None:
    half = nnx.Param(jnp.ones(2, "bfloat16"))
    half += np.ones(2)
    half *= np.float64(2)
    half -= np.ones(2, np.float32)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, jnp.full(2, 3, "bfloat16"))


# -- merging a State of other shapes ---------------------------------------------------------------


def test_merging_a_state_of_other_shapes_is_told() -> None:
    def linear(inputs: int, outputs: int) -> nnx.Linear:
        return nnx.Linear(inputs, outputs, rngs=nnx.Rngs(0))

    graphdef, state = nnx.split(linear(2, 3))
    for other in (nnx.split(linear(5, 3))[1], nnx.state(linear(2, 7)), nnx.state(linear(5, 7))):
        for given in (other, nnx.to_pure_dict(other), jax.device_get(other)):
            with pytest.raises(nnx.StructureError, match=r"`kernel` \(2, 3\) → \(\d, \d\)"):
                nnx.merge(graphdef, given)
    nnx.merge(graphdef, state)


def test_states_that_are_batched_sliced_or_of_objects_of_one_structure_are_merged() -> None:
    small, large = Node(w=nnx.Param(jnp.ones((2, 3)))), Node(w=nnx.Param(jnp.ones((2, 4))))
    graphdef, state = nnx.split(small)
    same, other = nnx.split(large)
    assert same == graphdef
    assert nnx.merge(graphdef, other).w.shape == (2, 4)
    graphdef, state = nnx.split(nnx.BatchNorm(3, rngs=nnx.Rngs(0)))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[state] * 4)
    assert nnx.merge(graphdef, stacked).scale.shape == (4, 3)
    many, stack = nnx.split(nnx.merge(graphdef, stacked))
    assert nnx.merge(many, jax.tree.map(lambda x: x[:2], stack)).mean.shape == (2, 3)
    assert nnx.merge(many, jax.tree.map(lambda x: x[0], stack)).mean.shape == (3,)
    half = jax.tree.map(lambda x: x.astype("bfloat16"), state)
    assert nnx.merge(graphdef, half).scale.dtype == jnp.bfloat16
    out = jax.vmap(lambda s: nnx.merge(graphdef, s).scale.sum())(stacked)
    assert out.shape == (4,)


def test_the_model_does_not_follow_the_state_that_it_was_merged_of() -> None:
    weights = np.ones(2)
    model = nnx.merge(nnx.graphdef(Node(w=nnx.Param(jnp.zeros(2)))), {"w": weights})
    weights[:] = 7
    np.testing.assert_array_equal(model.w.value, [1, 1])


# -- all of an array by `[...] =` ------------------------------------------------------------------


ALL_OF_IT = [2, np.int8(2), np.full(3, 2), [2, 2, 2], [[2, 2, 2]], jnp.uint8(2)]


@pytest.mark.parametrize("where", ["a Variable", "a jitted argument", "a hook", "a subclass"])
@pytest.mark.parametrize("shape", [(), (2,), (1, 3), (2, 3)])
@pytest.mark.parametrize("given", [*ALL_OF_IT, nnx.Param(jnp.uint8(2))])
def test_all_of_an_array_is_written_and_keeps_its_shape(given, shape, where):
    class Own(nnx.Param):
        def set_value(self, value, *, index=...):
            super().set_value(value, index=index)

    hook = {"on_set_value": lambda variable, value: value} if where == "a hook" else {}
    current = jnp.ones(shape, jnp.bfloat16)
    variable = (Own if where == "a subclass" else nnx.Param)(current, **hook)

    def write(variable):
        variable[...] = given

    write = nnx.jit(write) if where == "a jitted argument" else write
    try:
        expected = np.broadcast_to(np.asarray(given), shape)
    except ValueError:
        with pytest.raises(nnx.errors.StructureError, match=r"`variable\.value = new`"):
            write(variable)
        expected = current
    else:
        write(variable)
    assert variable.shape == shape
    np.testing.assert_array_equal(np.asarray(variable.value, int), np.asarray(expected, int))


@pytest.mark.parametrize("traced", [False, True])
def test_a_list_is_an_array(traced):
    variable = nnx.Param(jnp.ones(2))

    def write(variable, x):
        variable[...] = [x, 2 * x]

    (nnx.jit(write) if traced else write)(variable, jnp.float32(3))
    assert isinstance(variable.value, jax.Array) and variable.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(variable.value, int), [3, 6])
    variable[...] = [1, 0.5]
    np.testing.assert_array_equal(np.asarray(variable.value, float), [1, 0.5])


def test_what_is_no_number_replaces_an_array():
    for given in ({"scale": jnp.ones(1)}, None, "text"):
        variable = nnx.Variable(jnp.ones(2))
        variable[...] = given
        assert variable.value == given


@pytest.mark.parametrize("dtype", [">f4", ">i2", ">c8", ">u8", "<f4"])
def test_bytes_in_the_order_of_another_machine(dtype):
    given = np.array([[1, 2, 3]], dtype)
    for variable in (nnx.Param(given), nnx.Param(jnp.zeros((1, 3), jnp.complex64))):
        variable.value = given
        np.testing.assert_array_equal(variable.value, [[1, 2, 3]])


def test_a_number_that_is_too_large_is_told_with_the_name_that_there_is():
    with pytest.raises(nnx.errors.StructureError, match="does not fit into the Variable, whose"):
        nnx.Variable(2**40)
    node = Node(w=nnx.Variable(jnp.array(1)))
    with pytest.raises(nnx.errors.StructureError, match=r"does not fit into `Node\.w`, whose"):
        node.w.value = 2**40
