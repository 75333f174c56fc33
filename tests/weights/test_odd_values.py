"""Values and names that are no plain weights: taken, or refused by name; never changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from refax import nnx

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int4", "bool"]
FLOATS = ["float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2"]
VALUES = [0, 1, -1, 2, 7, 100, 127, 128, 255, 300, 40_000, 70_000, -(2**31), 2**31, 2**40]


def by_mapping(tmp_path, target, array):
    nnx.load_state_dict(target, {"a": array})


def by_jax(tmp_path, target, array):
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        pytest.skip("an array of JAX has 32 bits")
    nnx.load_state_dict(target, {"a": jnp.asarray(array)})


def by_file(tmp_path, target, array):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": array}, path)
    nnx.load(path, target)


def sharded_by_file(tmp_path, target, array):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    target["a"].value = jax.device_put(target["a"].value, sharding)
    by_file(tmp_path, target, array)
    assert target["a"].value.sharding == sharding


@pytest.mark.parametrize("way", [by_mapping, by_jax, by_file, sharded_by_file])
@pytest.mark.parametrize("given", ["int64", "uint8", "float64", "float32", "bool"])
def test_a_number_is_kept_or_refused(tmp_path, way, given):
    """What the dtype of the model cannot hold is an error; precision alone may be lost."""
    kinds = INTEGERS + FLOATS if given[0] != "f" else FLOATS
    for dtype in map(jnp.dtype, kinds):
        for value in VALUES if given != "bool" else [0, 1]:
            array = np.array([0, value]).astype(given)
            if array[1] != value:
                continue
            if jnp.issubdtype(dtype, jnp.floating):
                fits = abs(value) <= float(jnp.finfo(dtype).max)
            elif dtype.name == "bool":
                fits = value in (0, 1)
            else:
                fits = int(jnp.iinfo(dtype).min) <= value <= int(jnp.iinfo(dtype).max)
            before = jnp.ones(2, dtype)
            target = {"a": nnx.Variable(before)}
            to_bool = dtype.name == "bool" and given != "bool"  # refused, whatever the number
            try:
                way(tmp_path, target, array)
            except ValueError as error:
                assert to_bool or not fits, (dtype, value)
                assert "`a`" in str(error) and "Cure: " in str(error)
                assert (np.asarray(target["a"].value) == np.asarray(before)).all()
            else:
                found = np.asarray(target["a"].value)
                assert fits and not to_bool and found.dtype == dtype, (dtype, value)
                assert found[1] == np.asarray(value).astype(dtype), (dtype, value)


PLAIN = {
    "numbers": lambda x: x.tolist() if x.size else x,
    "big-endian": lambda x: x.astype(">f4"),
    "wider": lambda x: x.astype(np.float64),
    "of another order": lambda x: np.array(x, order="F"),
    "not contiguous": lambda x: np.repeat(x, 2, axis=-1)[..., ::2] if x.ndim else x,
    "backwards": lambda x: np.flip(np.flip(x).copy()),
    "not aligned": lambda x: np.frombuffer(b"." + x.tobytes(), np.float32, x.size, 1)
    .reshape(x.shape) if x.size else x,
    "read-only": lambda x: jnp.asarray(x).__array__(),
    "of JAX": jnp.asarray,
}  # fmt: skip


@pytest.mark.parametrize("how", PLAIN)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (0, 4), (2, 1, 2)], ids=str)
def test_arrays_however_they_lie_in_memory(tmp_path, how, shape):
    right = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    target = {"a": nnx.Param(jnp.zeros(shape)), "k": nnx.Variable(jax.random.key(1))}
    given = PLAIN[how](right)
    nnx.load_state_dict(target, {"a": given}, strict=False)
    assert (np.asarray(target["a"].value) == right).all()
    nnx.save(tmp_path / "x", target)
    with nnx.Checkpoints(tmp_path / "run", asynchronous=False) as checkpoints:
        checkpoints.save(0, target)
        for read in (lambda x: nnx.load(tmp_path / "x", x), checkpoints.restore):
            again = {"a": nnx.Param(jnp.ones(shape)), "k": nnx.Variable(jax.random.key(2))}
            read(again)
            assert (np.asarray(again["a"].value) == np.asarray(target["a"].value)).all()
            assert again["a"].value.shape == shape and again["k"].value == target["k"].value


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i2", "i8", "u4", "c8", "c16"])
def test_arrays_of_numpy_that_an_object_holds(tmp_path, dtype, order):
    """As they are, without a Variable: in the order of bytes that the format has."""
    numbers = np.array([[1, 2, 3], [4, 5, 300]]).astype(order + dtype)[:, ::2]
    nnx.save(tmp_path / "x", {"a": numbers})
    if dtype[0] != "c":
        found = safetensors.numpy.load_file(tmp_path / "x")["a"]
        assert (found == numbers).all() and found.dtype == numbers.dtype.newbyteorder("=")
    target = {"a": np.zeros((2, 2), dtype)}
    nnx.load(tmp_path / "x", target)
    assert (np.asarray(target["a"]) == numbers).all()


def gone():
    array = jnp.ones(2)
    array.delete()
    return array


NO_NUMBERS = {
    "a text": ("x", "<U1"),
    "nothing": (None, "object"),
    "objects": (np.array([None, 1], object), "object"),
    "texts": (np.array(["a", "bc"]), "<U2"),
    "dates": (np.array(["2020-01-01"] * 2, "M8[D]"), "datetime64"),
    "records": (np.zeros(2, [("x", "f4")]), "'x'"),
    "uneven lists": ([[1], [1, 2]], "lists of several lengths"),
    "a dict": ({"b": 1}, "object"),
    "a mask": (np.ma.array([1.0, 2.0], mask=[0, 1]), "has a mask"),
    "a deleted array": (gone, "was deleted"),
}


@pytest.mark.parametrize("what", NO_NUMBERS)
def test_what_is_no_array_of_numbers_is_not_loaded(what):
    value, text = NO_NUMBERS[what]
    target = {"a": nnx.Param(jnp.zeros(2)), "b": nnx.Param(jnp.zeros(2))}
    before = nnx.state_dict(target)
    value = value() if callable(value) else value
    with pytest.raises(ValueError) as caught:
        nnx.load_state_dict(target, {"a": value, "b": np.ones(2)})
    assert "`a`" in str(caught.value) and text in str(caught.value), caught.value
    assert "Cure: " in str(caught.value)
    assert all(x is before[name] for name, x in nnx.state_dict(target).items())


def writers(tmp_path):
    checkpoints = nnx.Checkpoints(tmp_path / "run")
    return {
        "save": lambda obj: nnx.save(tmp_path / "file", obj),
        "Checkpoints.save": lambda obj: checkpoints.save(1, obj),
    }, checkpoints


def within(transform):
    """The call in a function that is being traced, with its object."""
    return lambda call, obj: transform(lambda obj: (call(obj), obj["a"].sum())[1])(obj)


INSIDE = {
    "jit": within(nnx.jit),
    "grad": within(nnx.grad),
    "vmap": within(nnx.vmap),
    "remat": within(nnx.remat),
    "eval_shape": lambda call, obj: nnx.eval_shape(lambda: call({"a": nnx.Param(jnp.ones(2))})),
    "abstract": lambda call, obj: call(nnx.eval_shape(lambda: obj)),
    "deleted": lambda call, obj: (obj["a"].value.delete(), call(obj)),
    "wide": lambda call, obj: call({"a": np.ones(2, np.longdouble)}),
}


@pytest.mark.parametrize("what", INSIDE)
def test_what_has_no_numbers_now_is_not_written(tmp_path, what):
    calls, checkpoints = writers(tmp_path)
    for verb, call in calls.items():
        with pytest.raises(ValueError) as caught:
            INSIDE[what](call, {"a": nnx.Param(jnp.ones(2))})
        assert str(caught.value).startswith(f"nnx.{verb}: `a` "), caught.value
        assert "Cure: " in str(caught.value)
    checkpoints.save(1, nnx.Param(jnp.ones(2)))  # it goes on
    checkpoints.close()
    assert [x.name for x in tmp_path.iterdir()] == ["run"]
    assert [x.name for x in (tmp_path / "run").iterdir()] == ["1"]


def test_checkpoints_do_not_run_in_a_traced_function(tmp_path):
    model = nnx.Param(jnp.ones(2))
    with nnx.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, model)
        for call in (lambda: checkpoints.restore(model), lambda: checkpoints.save(2, model)):
            with pytest.raises(ValueError, match=r"(?s)function that is being traced.*Cure"):
                jax.jit(lambda x, call=call: (call(), x)[1])(1.0)
    assert (model.value == 1).all()


def param(value: float):
    return nnx.Param(jnp.full(2, value))


ALIKE = {
    "a number and a text": {0: param(1), "0": param(2)},
    "deeper": {"a": [param(0), {1: param(1), "1": param(2)}]},
}


@pytest.mark.parametrize("what", ALIKE)
def test_two_arrays_of_one_name_are_refused(tmp_path, what):
    calls, checkpoints = writers(tmp_path)
    calls |= {"state_dict": nnx.state_dict, "load_state_dict": lambda x: nnx.load_state_dict(x, {})}
    for verb, call in calls.items():
        with pytest.raises(
            ValueError, match=rf"nnx.{verb}: two arrays have the name .*\n?.*Cure: "
        ):
            call(ALIKE[what])
    checkpoints.close()


NAMES = [
    "é", "日本語", "e\u0301", "\U0001f642", "a b", "a\tb\n", "a\0b", 'quo"te', "quo'te",
    "back\\slash",
    "a/b", "..", ".", "", "a.b", "a[0]", "[0]", "refax.header\":\"00000000", "refax.format", "%2F",
    "x" * 5000, "CON", "value", "raw_value", "__class__", "-1", "1e3", "null", (1, 2), 1.5,
    -3, True,
]  # fmt: skip


def test_names_of_every_kind(tmp_path):
    make = lambda f: {name: param(f(i)) for i, name in enumerate(NAMES)}  # noqa: E731
    objects, target = make(lambda i: i), make(lambda i: -1)
    texts = [text for text in map(str, NAMES) if not text.startswith("refax.")]
    nnx.save(tmp_path / "x", objects, metadata={name: "of " + name for name in texts})
    nnx.load(tmp_path / "x", target)
    assert [float(v.value[0]) for v in target.values()] == list(range(len(NAMES)))
    metadata = nnx.inspect_file(tmp_path / "x").metadata
    assert metadata.items() >= {("日本語", "of 日本語"), ("a\0b", "of a\0b")}
    target = make(lambda i: -1)
    with nnx.Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save(1, objects)
        checkpoints.restore(target)
    assert [float(v.value[0]) for v in target.values()] == list(range(len(NAMES)))


def test_names_that_no_file_can_have(tmp_path):
    for name in ("__metadata__", "\ud800", "a\udfffb"):
        with pytest.raises(ValueError, match=r"(?s)nnx.save: no file can have .*Cure: another key"):
            nnx.save(tmp_path / "x", {name: param(1)})
    for metadata in ({"a": "\ud800"}, {"\ud800": "a"}):
        with pytest.raises(ValueError, match="no file can have"):
            nnx.save(tmp_path / "x", param(1), metadata=metadata)
    with pytest.raises(ValueError, match="of which the format allows 100,000,000"):
        nnx.save(tmp_path / "x", param(1), metadata={"a": "x" * 100_000_000})
    assert list(tmp_path.iterdir()) == []


OVER = {
    "a dot": lambda a, b: {"a.b": param(a), "a": {"b": param(b)}},
    "a tuple": lambda a, b: {(1, 2): param(a), "(1, 2)": param(b)},
    "a fraction": lambda a, b: {"x": {1.5: param(a), "1.5": param(b)}},
}


@pytest.mark.parametrize("how", OVER)
def test_what_orbax_would_write_one_over_the_other(tmp_path, how):
    objects, target = OVER[how](1, 2), OVER[how](0, 0)
    nnx.save(tmp_path / "x", objects)  # which tells them apart
    nnx.load(tmp_path / "x", target)
    found, right = nnx.state_dict(target), nnx.state_dict(objects)
    assert len(found) == 2 and all((found[name] == right[name]).all() for name in right)
    with nnx.Checkpoints(tmp_path / "run") as checkpoints:
        with pytest.raises(ValueError, match="nnx.Checkpoints.save: two arrays have the name"):
            checkpoints.save(1, objects)


@pytest.mark.parametrize("written, read", [("tied", "apart"), ("apart", "tied"), ("same", "tied")])
def test_tied_arrays_that_were_tied_otherwise(tmp_path, written, read):
    def make(how, start):
        first = param(start)
        other = {"tied": first, "apart": param(start + 1), "same": param(start)}[how]
        return {"one": first, "two": {"three": other}}

    before = {name: float(x[0]) for name, x in nnx.state_dict(make(written, 5.0)).items()}
    nnx.save(tmp_path / "x", make(written, 5.0))
    target = make(read, 0.0)
    if written == "apart":  # two values for one array
        with pytest.raises(ValueError, match="are one tied array, but have two values"):
            nnx.load(tmp_path / "x", target)
        assert target["one"].value[0] == 0
    else:
        nnx.load(tmp_path / "x", target)
        assert {float(x[0]) for x in nnx.state_dict(target, aliases=True).values()} == {5.0}
    assert before.keys() <= {"one", "two.three"}
