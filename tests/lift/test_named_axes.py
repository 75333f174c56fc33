"""Annotations kept in step by hand."""

import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from refax import nnx

LAYERS = {nnx.PARTITION_NAME: "layers"}


def model():
    split = {"sharding": (None, "model")}
    return nnx.Linear(2, 3, kernel_metadata=split, rngs=nnx.Rngs(0))


HOLDERS = {
    "object": lambda m: (m, m.kernel),
    "State": lambda m: (s := nnx.state(m), s.kernel),
    "container": lambda m: ({"a": [m]}, m.kernel),
    "Variable": lambda m: (m.kernel, m.kernel),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("index", [0, 1, 2, -1])
def test_a_name_is_put_in_and_taken_out(holder, index):
    tree, kernel = HOLDERS[holder](model())
    assert nnx.spmd.add_axis(tree, index, LAYERS) is tree
    expected = [None, "model"]
    expected.insert(index if index >= 0 else 3 + index, "layers")
    assert kernel.sharding == tuple(expected)
    assert nnx.spmd.get_var_pspec(kernel) == P(*expected)
    assert nnx.spmd.remove_axis(tree, index, LAYERS) is tree
    assert kernel.sharding == (None, "model")


def test_another_name_is_an_error_with_its_path():
    m = model()
    with pytest.raises(ValueError, match="kernel"):
        nnx.spmd.remove_axis(m, 0, LAYERS)
    assert m.kernel.sharding == (None, "model")


def test_the_spec_of_a_variable():
    assert nnx.spmd.get_var_pspec(nnx.Param(jnp.ones(2))) == P()
    v = nnx.Param(jnp.ones((2, 2)), sharding=("embed", None))
    with nnx.logical_axis_rules([("embed", "model")]):
        assert nnx.spmd.get_var_pspec(v) == P("model", None)
