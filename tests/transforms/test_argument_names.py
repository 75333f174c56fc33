"""Programs of XLA and messages of JAX call arguments by their paths."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from refax import nnx


class Model(nnx.Module):
    def __init__(self):
        self.blocks = [nnx.Linear(2, 2, rngs=nnx.Rngs(0)) for _ in range(2)]
        self.table = jnp.ones(2)  # no Variable
        self.pair = nnx.Variable({"mean": jnp.ones(2), "variance": jnp.ones(2)})

    def __call__(self, batch, *, scale=1.0, shift=0.0):
        x = batch["x"] * self.table + self.pair["mean"] - self.pair["variance"]
        for block in self.blocks:
            x = block(x)
        self.table = self.table + 1
        return scale * x + shift


OF_OBJECT = ["blocks[0].bias", "blocks[0].kernel", "blocks[1].bias", "blocks[1].kernel", "table"]
OF_OBJECT += ["pair['mean']", "pair['variance']"]


def names(lowered):
    arguments = lowered.as_text(debug_info=True).partition("@main(")[2].partition(" -> ")[0]
    return set(re.findall(r'loc\("([^"]*)"\)', arguments))


def run(model, batch, scale, *, shift):
    return model(batch, scale=scale, shift=shift)


def mesh():
    return jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def options():
    everywhere = NamedSharding(mesh(), P())
    yield {}
    yield {"donate_argnames": "model"}
    yield {"donate_argnums": 1}
    yield {"static_argnames": "scale"}
    yield {"static_argnums": 2, "donate_argnums": 0}
    yield {"in_shardings": (everywhere, everywhere, everywhere)}


@pytest.mark.parametrize("given", list(options()), ids=lambda x: ",".join(x) or "plain")
def test_every_argument_of_a_program_has_its_path(given):
    wanted = {f"model.{name}" for name in OF_OBJECT} | {"batch['x']", "shift"}
    if "static_argnames" not in given and "static_argnums" not in given:
        wanted.add("scale")
    jitted = nnx.jit(run, **given)
    arguments = Model(), {"x": jnp.ones(2)}
    lowered = jitted.lower(*arguments, 2.0, shift=np.float32(1.0))
    assert names(lowered) == wanted
    # XLA keeps them, for dumps and reports of memory.
    text = lowered.compile().as_text()
    assert 'op_name="model.blocks[0].kernel"' in text.replace("\\", "")
    jitted(*arguments, 2.0, shift=np.float32(1.0))


def test_values_that_lie_on_several_devices_have_their_paths():
    model = Model()
    nnx.update(model, jax.device_put(nnx.state(model), NamedSharding(mesh(), P())))
    lowered = nnx.jit(run).lower(model, {"x": jnp.ones(2)}, 1.0, shift=0.0)
    assert names(lowered) > {f"model.{name}" for name in OF_OBJECT}


def test_a_method_calls_its_object_self_and_containers_have_keys():
    lowered = nnx.jit(Model().__call__).lower({"x": jnp.ones(2)})
    assert names(lowered) == {f"self.{name}" for name in OF_OBJECT} | {"batch['x']"}
    lowered = nnx.jit(lambda models: models["a"](X)).lower({"a": Model()})
    assert "models['a'].blocks[0].kernel" in names(lowered)


X = {"x": jnp.ones(2)}


def test_two_arguments_that_would_have_one_name_are_two():
    def f(**kwargs):
        return kwargs["a"] + kwargs["b"]

    value = nnx.Param(jnp.ones(2))
    lowered = nnx.jit(lambda v, w: v + w).lower(value, value)
    assert names(lowered) == {"v"}
    assert names(nnx.jit(f).lower(a=jnp.ones(2), b=value)) == {"a", "b"}


@pytest.mark.parametrize("given", [{}, {"donate_argnums": 0}], ids=str)
def test_an_error_of_jax_about_a_value_names_its_path(given):
    @nnx.jit(**given)
    def f(model, batch):
        if model.blocks[1].kernel[0, 0] > 0:
            return batch["x"]
        return 0

    with pytest.raises(jax.errors.TracerBoolConversionError, match=r"model\.blocks\[1\]\.kernel"):
        f(Model(), X)


def test_a_deeper_value_after_a_first_call_is_named_anew():
    jitted = nnx.jit(lambda v: jax.tree.leaves(v.value))
    jitted(nnx.Variable({"a": jnp.ones(2)}))
    variable = nnx.Variable({"a": jnp.ones(2), "b": [jnp.ones(3)]})
    assert names(jitted.lower(variable)) == {"v['a']", "v['b'][0]"}
    assert len(jitted(variable)) == 2
