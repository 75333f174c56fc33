"""Variables for code that was written for others: raw values, overridden access, dlpack, names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx


def test_raw_values_go_past_hooks():
    variable = nnx.Variable(
        jnp.array(2.0), on_get_value=lambda _, x: x * 10, on_set_value=lambda _, x: x + 1
    )
    assert float(variable.value) == 20.0 and float(variable.get_raw_value()) == 2.0
    variable.set_raw_value(jnp.array(5.0))
    assert float(variable.get_raw_value()) == 5.0
    variable.raw_value = jnp.array(6.0)
    assert float(variable.raw_value) == 6.0
    for write in (variable.set_raw_value, lambda x: setattr(variable, "raw_value", x)):
        with pytest.raises(nnx.TraceContextError):
            jax.jit(write)(1.0)
    assert float(variable.get_raw_value()) == 6.0


def test_from_metadata_and_copies():
    param = nnx.Param(jnp.ones(2), tag="a", sharding_names=("x",))
    again = nnx.Param.from_metadata(jnp.zeros(2), param.get_metadata())
    assert type(again) is nnx.Param and again.get_metadata() == param.get_metadata()
    named = nnx.Param.from_metadata(value=jnp.zeros(2), attributes={"tag": "c"})
    param_of_c = nnx.Param(jnp.zeros(2))
    param_of_c.update_from_state(variable_state=named)
    assert named.tag == param_of_c.tag == "c"
    other = param.copy(jnp.zeros(3), tag="b")
    assert other.shape == (3,) and other.tag == "b" and param.tag == "a"
    assert param.copy().value is param.value and param.to_state(jnp.zeros(1)).shape == (1,)


class Doubled(nnx.Variable):
    """What is read is twice what is stored, and the other way round."""

    def get_value(self, *, index=...):
        return super().get_value(index=index) * 2

    def set_value(self, value, *, index=...):
        super().set_value(value / 2, index=index)


class Halved(nnx.Variable):
    """What it is made of is halved; a copy, or one from a State, is as it was."""

    def create_value(self, value):
        return super().create_value(value) / 2


def test_a_subclass_is_asked_for_the_first_value():
    hook = {"on_create_value": lambda _, x: x + 1}
    variable = Halved(jnp.array(4.0))
    assert float(variable.value) == 2.0 and float(Halved(3.0, **hook).value) == 2.0
    model = nnx.Dict(v=variable)
    for same in (variable.copy(), nnx.clone(model).v, nnx.merge(*nnx.split(model)).v):
        assert type(same) is Halved and float(same.value) == 2.0
    assert float(nnx.jit(lambda: Halved(jnp.array(4.0)))().value) == 2.0


def test_a_subclass_is_asked_for_every_read_and_write():
    variable = Doubled(jnp.array([1.0, 2.0]))
    assert variable.get_raw_value().tolist() == [1.0, 2.0]
    assert variable.value.tolist() == variable[...].tolist() == [2.0, 4.0]
    assert float(variable[1]) == 4.0
    assert (variable + 1).tolist() == [3.0, 5.0] and variable.sum() == 6.0
    variable.value = jnp.array([10.0, 20.0])
    assert variable.get_raw_value().tolist() == [5.0, 10.0]
    variable[0] = 4.0
    assert variable.get_raw_value().tolist() == [2.0, 10.0]
    variable += 2.0
    assert variable.value.tolist() == [6.0, 22.0]

    @nnx.jit
    def step(v):
        v.value = v.value + 2.0
        return v.value

    assert step(variable).tolist() == [8.0, 24.0] == variable.value.tolist()
    assert nnx.state({"a": variable})["a"].get_raw_value().tolist() == [4.0, 12.0]
    assert nnx.clone(nnx.Dict(a=variable)).a.value.tolist() == [8.0, 24.0]


NAMES = ("sharding", "sharding_names", "out_sharding")


@pytest.mark.parametrize("given", NAMES)
def test_one_annotation_under_three_names(given):
    param = nnx.Param(jnp.ones((2, 2)), **{given: (None, "model")})
    assert param.get_metadata() == {given: (None, "model")}
    for name in NAMES:
        assert param.has_metadata(name) and param.get_metadata(name) == (None, "model")
    for name in NAMES[1:]:
        assert getattr(param, name) == (None, "model")
    if given == "sharding":
        assert param.sharding == (None, "model")
    else:
        assert isinstance(param.sharding, jax.sharding.Sharding)
    assert tuple(nnx.get_partition_spec(param).value) == (None, "model")
    for name in NAMES:
        param.set_metadata(name, (name, None))
        assert param.get_metadata() == {given: (name, None)}
    param.del_metadata("sharding")
    assert param.get_metadata() == {}


def test_the_spelling_of_with_partitioning():
    init = nnx.with_partitioning(nnx.initializers.ones_init(), (None, "model"))
    linear = nnx.Linear(2, 2, kernel_init=init, rngs=nnx.Rngs(0))
    assert linear.kernel.out_sharding == (None, "model")
    assert isinstance(linear.kernel.sharding, jax.sharding.Sharding)


def test_dlpack():
    param = nnx.Param(jnp.arange(3.0))
    assert np.from_dlpack(param).tolist() == [0.0, 1.0, 2.0]
    assert jnp.from_dlpack(param).tolist() == [0.0, 1.0, 2.0]
    assert param.__dlpack_device__() == param.value.__dlpack_device__()


def test_an_ambiguous_truth_names_the_variable():
    linear = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=r"Param `Linear.bias` \(float32\[2\]\) is ambiguous(.|\n)*any"
    ):
        bool(linear.bias)
    with pytest.raises(ValueError, match="is ambiguous"):
        bool(nnx.Param(jnp.ones(0)))
    assert bool(nnx.Param(jnp.array([1.0]))) and not nnx.Param(jnp.array(0))


def test_items_of_a_dict():
    cache = nnx.Cache({"a": jnp.ones(2), "b": jnp.ones(2)})
    before = cache.value
    del cache["a"]
    assert set(cache.value) == {"b"} and set(before) == {"a", "b"}
