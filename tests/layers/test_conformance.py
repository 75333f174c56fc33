"""Every layer of the table × what every layer must do."""

from __future__ import annotations

import copy
import inspect
import pickle
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from refax import nnx
from tests.layers.case import Case, inputs_of
from tests.layers.cases import BY_NAME, CASES

pytestmark = pytest.mark.usefixtures("strict_numerics")

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_with_dtype = pytest.mark.parametrize(
    "case", [c for c in CASES if c.dtype], ids=lambda case: case.name
)

# Each output is the end of a few dozen roundings of numbers of its own size.
ROUNDINGS = 64


def assert_close(actual: Any, expected: np.ndarray, dtype: Any = np.float32) -> None:
    tolerance = ROUNDINGS * float(jnp.finfo(dtype).eps) * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0, atol=tolerance)


def parameters(layer: Any) -> dict:
    """The layer's values as nested dicts of float64 arrays."""
    arrays = nnx.to_pure_dict(nnx.state(layer, nnx.Not(nnx.RngState)))
    return jax.tree.map(lambda x: np.asarray(x, np.float64), arrays)


def _swapped(f: Any, ids: Any, params: Any) -> jax.Array:
    return f(params, ids)


def reference(case: Case, layer: Any, inputs: list[np.ndarray]) -> np.ndarray:
    inputs = [x if case.integers else np.asarray(x, np.float64) for x in inputs]
    return case.reference(parameters(layer), *inputs)


def as_function(case: Case, layer: Any) -> tuple[Any, Any]:
    """(params, *inputs) → output, as a pure function, and the params."""
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)

    def f(params: Any, *inputs: Any) -> jax.Array:
        return nnx.merge(graphdef, params, rest)(*inputs, **case.call)

    return f, params


@each_case
def test_computes_its_formula(case: Case) -> None:
    layer, inputs = case.make(nnx), inputs_of(case)
    expected = reference(case, layer, inputs)
    actual = layer(*inputs, **case.call)
    assert actual.shape == expected.shape and actual.dtype == jnp.float32
    assert_close(actual, expected)


@each_case
def test_gradient_is_that_of_finite_differences(case: Case) -> None:
    # In float64, where central differences are good to some seven digits.
    with jax.enable_x64(True):
        options = {"dtype": jnp.float64, "param_dtype": jnp.float64} if case.dtype else {}
        layer = case.make(nnx, **options)
        f, params = as_function(case, layer)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
        inputs = inputs_of(case, np.float64)
        if case.integers:
            f, inputs = partial(_swapped, f, inputs[0]), []
        assert f(params, *inputs).dtype == jnp.float64
        check_grads(jax.jit(f), (params, *inputs), 1, ["rev"], rtol=1e-5, atol=1e-5)


@each_case
def test_under_jit_it_gives_what_it_gives_eagerly(case: Case) -> None:
    layer, inputs = case.make(nnx), inputs_of(case)
    f, params = as_function(case, layer)
    as_pytree = jax.jit(lambda layer, *inputs: layer(*inputs, **case.call))(layer, *inputs)
    as_state = jax.jit(f)(params, *inputs)
    eager = np.asarray(layer(*inputs, **case.call), np.float64)
    assert_close(as_pytree, eager)
    assert_close(as_state, eager)


def stacked(case: Case) -> tuple[list[Any], Any]:
    """Three layers with parameters of their own, and the same three as one with a leading axis."""
    layers = [case.make(nnx) for _ in range(3)]
    for i, layer in enumerate(layers):
        nnx.update(layer, jax.tree.map(lambda x, i=i: x * (1 + i / 4), nnx.state(layer, nnx.Param)))
    states = [nnx.state(layer) for layer in layers]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return layers, nnx.merge(nnx.graphdef(layers[0]), together)


@each_case
@pytest.mark.parametrize("transform", [nnx.vmap, nnx.scan])
def test_a_stack_of_layers_is_as_many_layers(case: Case, transform: Any) -> None:
    layers, stack = stacked(case)
    inputs = inputs_of(case)
    axes = (0, *(None for _ in inputs))
    f = transform(lambda layer, *x: layer(*x, **case.call), in_axes=axes, out_axes=0)
    actual = f(stack, *inputs)
    expected = np.stack([np.asarray(layer(*inputs, **case.call)) for layer in layers])
    assert_close(actual, expected.astype(np.float64))
    states = [nnx.state(layer, nnx.Not(nnx.RngState)) for layer in layers]
    for after, *each in zip(
        *map(jax.tree.leaves, (nnx.state(stack, nnx.Not(nnx.RngState)), *states))
    ):
        assert_close(after, np.stack(each).astype(np.float64))


@each_with_dtype
def test_dtype_is_that_of_the_result(case: Case) -> None:
    layer = case.make(nnx, dtype=jnp.bfloat16)
    inputs = inputs_of(case)
    actual = layer(*inputs, **case.call)
    assert actual.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(nnx.state(layer, nnx.Param))} == {jnp.dtype("f4")}
    if not case.name.startswith("MultiHead"):  # rounds in between: compared in test_attention
        tolerance = 4 * float(jnp.finfo(jnp.bfloat16).eps)
        expected = reference(case, layer, inputs)
        np.testing.assert_allclose(
            np.asarray(actual, np.float64), expected, rtol=tolerance, atol=4 * tolerance
        )


@each_with_dtype
def test_param_dtype_is_that_of_the_parameters(case: Case) -> None:
    option = "lora_param_dtype" if case.name == "LoRALinear" else "param_dtype"
    options = {"param_dtype": jnp.float16, option: jnp.float16}
    if case.name.startswith("BatchNorm"):  # its running averages stay float32
        options["dtype"] = jnp.float16
    layer = case.make(nnx, **options)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(layer, nnx.Param))} == {jnp.dtype("f2")}
    inputs = inputs_of(case, np.float16)
    assert layer(*inputs, **case.call).dtype == jnp.float16


@each_with_dtype
def test_promotes_by_the_rules_of_jax(case: Case) -> None:
    if case.integers or case.name == "LoRALinear":
        pytest.skip("the result has the dtype of the table, or of the Linear")
    layer = case.make(nnx, param_dtype=jnp.bfloat16)
    inputs = inputs_of(case)
    with jax.numpy_dtype_promotion("standard"):
        assert layer(*inputs, **case.call).dtype == jnp.float32
    with pytest.raises(ValueError, match="promotion"):
        layer(*inputs, **case.call)


@pytest.mark.parametrize("name", ["Linear", "LinearGeneral", "LayerNorm", "RMSNorm", "LoRA"])
def test_no_dtype_work_where_dtypes_agree(name: str) -> None:
    case = BY_NAME[name]
    jaxpr = str(jax.make_jaxpr(case.make(nnx))(*inputs_of(case)))
    assert "convert_element_type" not in jaxpr


@each_case
def test_wrong_last_axis_is_named(case: Case) -> None:
    if not case.features:
        return
    layer = case.make(nnx)
    x = np.zeros((*case.shapes[0][:-1], 9), np.float32)
    with pytest.raises(ValueError) as error:
        layer(x, **case.call)
    assert case.features in str(error.value)
    assert str(x.shape) in str(error.value)


@each_case
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"]
)
def test_a_copy_is_its_own_layer_and_gives_the_same(case: Case, copied: Any) -> None:
    layer, inputs = case.make(nnx), inputs_of(case)
    other = copied(layer)
    mine = jax.tree.leaves(nnx.variables(layer), is_leaf=lambda x: isinstance(x, nnx.Variable))
    its = jax.tree.leaves(nnx.variables(other), is_leaf=lambda x: isinstance(x, nnx.Variable))
    assert len(mine) == len(its) and not {id(v) for v in mine} & {id(v) for v in its}
    assert nnx.graphdef(layer) == nnx.graphdef(other)
    np.testing.assert_array_equal(layer(*inputs, **case.call), other(*inputs, **case.call))


@each_case
def test_a_variable_may_be_the_input(case: Case) -> None:
    layer, inputs = case.make(nnx), inputs_of(case)
    variables = [nnx.Variable(jnp.asarray(x)) for x in inputs]
    np.testing.assert_array_equal(layer(*inputs, **case.call), layer(*variables, **case.call))


@each_case
def test_train_and_eval_come_back_to_the_same_structure(case: Case) -> None:
    layer = case.make(nnx)
    layer.train()
    before = nnx.graphdef(layer)
    layer.eval()
    layer.train()
    assert nnx.graphdef(layer) == before


# -- beside the peer -----------------------------------------------------------------------------


@pytest.fixture
def peer() -> Any:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield pytest.importorskip("flax.nnx")


def values_by_path(lib: Any, layer: Any) -> dict[str, np.ndarray]:
    values = {}
    for path, value in lib.to_flat_state(lib.state(layer)):
        value = value.get_value() if isinstance(value, lib.Variable) else value
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        values[".".join(map(str, path))] = np.asarray(value)
    return values


@each_case
def test_same_seed_gives_the_same_values_as_the_peer(case: Case, peer: Any) -> None:
    mine, its = values_by_path(nnx, case.make(nnx)), values_by_path(peer, case.make(peer))
    assert mine.keys() == its.keys()
    for path in mine:
        assert mine[path].dtype == its[path].dtype
        np.testing.assert_array_equal(mine[path], its[path], err_msg=path)


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        ("Linear", (6, 5), {}),
        ("LinearGeneral", ((4, 5), (3, 2)), {"axis": (-2, -1)}),
        ("Embed", (11, 5), {}),
        ("LoRALinear", (6, 5), {"lora_rank": 2}),
        ("Conv", (6, 5, 3), {}),
        ("ConvTranspose", (5, 6, 3), {"transpose_kernel": True}),
        ("Einsum", ("...a,ab->...b", (6, 5), (5,)), {}),
        ("MultiHeadAttention", (4, 8), {"num_kv_heads": 2, "dropout_rate": 0.1}),
    ],
)
def test_initializers_by_default_are_those_of_the_peer(
    name: str, args: tuple, options: dict, peer: Any
) -> None:
    mine, its = (
        values_by_path(lib, getattr(lib, name)(*args, **options, rngs=lib.Rngs(0)))
        for lib in (nnx, peer)
    )
    assert mine.keys() == its.keys()
    for path in mine:
        np.testing.assert_array_equal(mine[path], its[path], err_msg=path)


@each_case
def test_with_the_weights_of_the_peer_it_gives_the_same(case: Case, peer: Any) -> None:
    layer, model = case.make(nnx), case.make(peer)
    rng = np.random.default_rng(1)
    state = peer.to_pure_dict(peer.state(model, peer.Not(peer.RngState)))
    # As JAX arrays: a NumPy kernel that both share would be masked in place by the peer.
    state = jax.tree.map(
        lambda x: x if x.dtype == bool else jnp.asarray(rng.uniform(0.5, 1.5, x.shape), np.float32),
        state,
    )
    nnx.update(layer, state)
    peer.update(model, state)
    inputs = inputs_of(case, seed=2)
    expected = np.asarray(model(*map(jnp.asarray, inputs), **case.call), np.float64)
    assert_close(layer(*inputs, **case.call), expected)


@each_with_dtype
def test_in_low_precision_it_gives_about_what_the_peer_gives(case: Case, peer: Any) -> None:
    if case.name.startswith("MultiHead"):
        pytest.skip("it is compared in test_attention")
    options = {"param_dtype": jnp.bfloat16}
    layer, model = case.make(nnx, **options), case.make(peer, **options)
    inputs = [x if case.integers else jnp.asarray(x, jnp.bfloat16) for x in inputs_of(case)]
    actual, expected = layer(*inputs, **case.call), model(*inputs, **case.call)
    # LoRALinear keeps the dtype of its Linear here; the peer's scales of WeightNorm are float32.
    if case.name not in ("LoRALinear", "WeightNorm"):
        assert actual.dtype == expected.dtype
    assert_close(actual, np.asarray(expected, np.float64), jnp.bfloat16)


@pytest.mark.parametrize(
    "name",
    """Linear LinearGeneral Embed LayerNorm RMSNorm BatchNorm Dropout MultiHeadAttention LoRA
    LoRALinear PReLU Sequential dot_product_attention make_attention_mask make_causal_mask
    combine_masks SimpleCell LSTMCell OptimizedLSTMCell GRUCell RNN Bidirectional
    Conv ConvTranspose Einsum avg_pool max_pool min_pool pool
    GroupNorm InstanceNorm WeightNorm SpectralNorm""".split(),
)
def test_arguments_are_those_of_the_peer(name: str, peer: Any) -> None:
    mine, its = getattr(nnx, name), getattr(peer, name)
    pairs = [(mine, its)]
    if isinstance(mine, type):
        pairs = [(mine.__init__, its.__init__), (mine.__call__, its.__call__)]
    for ours, theirs in pairs:
        got, wanted = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
        missing = {p for p in wanted if p not in got}
        assert missing <= {"input_positions"}  # of attention, since Flax 0.12.12
        assert [p for p in got if p in wanted] == [p for p in wanted if p not in missing]
        for p in wanted.keys() - missing:
            if name != "LoRALinear" or p not in ("in_features", "out_features", "lora_rank"):
                assert got[p].kind == wanted[p].kind, p
                ours_default, its_default = got[p].default, wanted[p].default
                if isinstance(its_default, (int, float, str, tuple, type(None))):
                    assert ours_default == its_default, p
