"""Every argument of every layer given what does not fit: the error says whose, which and what."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

X = np.ones((2, 5, 4), np.float32)


class Thing:
    """Of no use to any layer."""

    def __repr__(self) -> str:
        return "Thing()"


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def dense(**options: Any) -> nnx.Linear:
    return nnx.Linear(4, 4, rngs=rngs(), **options)


def cell() -> nnx.GRUCell:
    return nnx.GRUCell(4, 3, rngs=rngs())


# What makes each, by name; and what it is called with, if it is a layer.
EXAMPLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "AvgPool": ({"window_shape": (2,)}, {"inputs": X}),
    "BatchNorm": ({"num_features": 4, "rngs": rngs()}, {"x": X}),
    "Bidirectional": (
        {"forward_rnn": nnx.RNN(cell()), "backward_rnn": nnx.RNN(cell())},
        {"inputs": X},
    ),
    "Conv": ({"in_features": 4, "out_features": 3, "kernel_size": 2, "rngs": rngs()}, {"inputs": X}),
    "ConvTranspose": (
        {"in_features": 4, "out_features": 3, "kernel_size": 2, "rngs": rngs()},
        {"inputs": X},
    ),
    "Dropout": ({"rate": 0.5, "rngs": rngs()}, {"inputs": X}),
    "Einsum": ({"einsum_str": "...i,io->...o", "kernel_shape": (4, 3), "rngs": rngs()}, {"inputs": X}),
    "Embed": (
        {"num_embeddings": 7, "features": 3, "rngs": rngs()},
        {"inputs": np.ones((2, 3), np.int32)},
    ),
    "GRUCell": (
        {"in_features": 4, "hidden_features": 3, "rngs": rngs()},
        {"carry": np.ones((2, 3), np.float32), "inputs": X[:, 0]},
    ),
    "GroupNorm": ({"num_features": 4, "num_groups": 2, "rngs": rngs()}, {"x": X}),
    "InstanceNorm": ({"num_features": 4, "rngs": rngs()}, {"x": X}),
    "LSTMCell": (
        {"in_features": 4, "hidden_features": 3, "rngs": rngs()},
        {"carry": (np.ones((2, 3), np.float32),) * 2, "inputs": X[:, 0]},
    ),
    "LayerNorm": ({"num_features": 4, "rngs": rngs()}, {"x": X}),
    "Linear": ({"in_features": 4, "out_features": 3, "rngs": rngs()}, {"inputs": X}),
    "LinearGeneral": ({"in_features": 4, "out_features": (3, 2), "rngs": rngs()}, {"inputs": X}),
    "LoRA": (
        {"in_features": 4, "lora_rank": 2, "out_features": 3, "rngs": rngs()},
        {"x": X},
    ),
    "LoRALinear": (
        {"in_features": 4, "out_features": 3, "lora_rank": 2, "rngs": rngs()},
        {"x": X},
    ),
    "MaxPool": ({"window_shape": (2,)}, {"inputs": X}),
    "MinPool": ({"window_shape": (2,)}, {"inputs": X}),
    "MultiHeadAttention": (
        {"num_heads": 2, "in_features": 4, "deterministic": True, "rngs": rngs()},
        {"inputs_q": X},
    ),
    "PReLU": ({}, {"inputs": X}),
    "RMSNorm": ({"num_features": 4, "rngs": rngs()}, {"x": X}),
    "RNN": ({"cell": cell()}, {"inputs": X}),
    "SpectralNorm": ({"layer_instance": dense(), "rngs": rngs()}, {"x": X}),
    "WeightNorm": ({"layer_instance": dense(), "rngs": rngs()}, {"x": X}),
    "Stack": ({"make_block": lambda rngs: dense(), "n": 2, "rngs": rngs()}, {"x": X}),
    "avg_pool": ({"inputs": X, "window_shape": (2,)}, {}),
    "combine_masks": ({}, {}),
    "dot_product_attention": ({name: X[:, :, None] for name in ("query", "key", "value")}, {}),
    "make_attention_mask": ({"query_input": X[..., 0], "key_input": X[..., 0]}, {}),
    "make_causal_mask": ({"x": X[..., 0]}, {}),
    "max_pool": ({"inputs": X, "window_shape": (2,)}, {}),
    "min_pool": ({"inputs": X, "window_shape": (2,)}, {}),
    "pool": (
        {
            "inputs": X,
            "init": 0.0,
            "reduce_fn": jax.lax.add,
            "window_shape": (2,),
            "strides": 1,
            "padding": "VALID",
        },
        {},
    ),
}
for _name in ("SimpleCell", "OptimizedLSTMCell"):
    EXAMPLES[_name] = EXAMPLES["LSTMCell" if "LSTM" in _name else "GRUCell"]

# They take any arguments; a cell or layer of the user's own gets them.
TAKE_ANYTHING = {"Identity", "RNNCellBase", "Sequential"}
# A pytree of any arrays; what a filter or a layer of the user says; a number that is not checked.
ANY_VALUE = {"init", "state_axes", "initial_carry", "qkv_dot_general_cls", "out_dot_general_cls"}
ANY_VALUE |= {"dot_general_cls", "Stack.x", "SpectralNorm.x", "WeightNorm.x"}
NONE_FITS = {"einsum_str", "GroupNorm.num_groups", "deterministic", "use_running_average"}
NONE_FITS |= {"dtype", "param_dtype", "WeightNorm.feature_axes", "variable_filter"}
NONE_FITS |= {"lora_param_dtype", "strides", "input_dilation", "kernel_dilation", "precision"}

NO_TYPE = [None, "three", Thing()]
NO_INT = [*NO_TYPE, 2.5, 2.0, np.float32(2), True, [[2]], {}, jnp.ones((2,), int)]
NO_ARRAY = [*NO_TYPE, [[1.0], [1.0, 2.0]], {"x": 1.0}, np.array(["a"]), jax.random.key(0)]
NO_FLAG = ["yes", 2, 0.5, [], jnp.ones(2, bool)]
NO_FUNCTION = [None, "relu", 3, Thing()]
WRONG: dict[str, list[Any]] = {
    "size": [*NO_INT, 0, -1, np.int64(0)],
    "count": [*NO_INT, -1],
    "axis": NO_INT,
    "sizes": [*NO_TYPE, 2.5, True, {}, 0, -1, (2, -1), (2, "a"), [2.5]],
    "sequence of sizes": [*NO_TYPE, 3, 2.5, True, {}, (2, 0), (2, "a"), [2.5]],
    "axes": [*NO_TYPE, 2.5, True, {}, (0, 1.5), ("a",)],
    "sequence of axes": [*NO_TYPE, 2, 2.5, {}, (0, 1.5), ("a",)],
    "rate": [*NO_TYPE, -0.1, 1.5, float("nan"), True, [0.5], jnp.ones(2), jnp.array(2.0)],
    "epsilon": [*NO_TYPE, -1e-6, float("nan"), True, [0.5], 1j],
    "number": [*NO_TYPE, [0.5], 1j, jnp.ones(2)],
    "dtype": ["float33", 3, [], Thing(), str, object, jax.random.key(0).dtype],
    "flag": [None, *NO_FLAG],
    "function": NO_FUNCTION,
    "layer": [*NO_FUNCTION, nnx.LSTMCell],
    "metadata": [None, "sharding", 3, [("sharding", None)], {3: None}],
    "rngs": [None, 0, "params", jax.random.key(0), Thing()],
    "rngs or key": [0.5, "params", Thing(), jax.random.split(jax.random.key(0))],
    "key": ["a", 0.5, Thing(), jax.random.split(jax.random.key(0))],
    "array": NO_ARRAY,
    "padding": [None, 2.5, "SOME", Thing(), {}, (1, 2, 3), ((1, 2, 3),), ("a",), (1.5,)],
    "precision": ["highly", 3, Thing(), ("high",), []],
    "string": [None, 3, Thing(), ["a"], b"a"],
    "sharding": ["data", 3, ("data",), Thing()],
    "groups": ["a", 3, [0, 1], [[0.5]], [[-1]], Thing()],
    "names": [3, {}, [3], Thing()],
    "equation": [3, "ab", "ab,bc", "ab,bc->ad", "ab,bc->aac", "a-b,bc->ac", "a.b,bc->ac", Thing()],
    "type": [None, "LoRAParam", int, nnx.LoRAParam(1), Thing()],
    "mapping": [None, 3, "a", [(0, 1)], {0: 0}, {0: "a"}, {"a": 2}, {0: 2.5}, {1: 2}],
    "policy": [None, "yes", 3, Thing()],
    "unroll": [None, 0, -1, 2.5, "a", Thing()],
    "filter": [3, 2.5, Thing()],
    "lengths": [*NO_ARRAY[1:], 3, jnp.ones(2), jnp.ones(3, int), [5, 6.5]],
    "carry": [*NO_TYPE, 3.0, np.ones((2, 9), np.float32), [], {}],
}
KIND = {
    "size": """in_features out_features num_features num_heads hidden_features lora_rank rank
        num_embeddings features n_steps feature_group_count num_groups group_size qkv_features
        num_kv_heads in_kv_features RNN.unroll""",
    "count": "n extra_batch_dims",
    "axis": "BatchNorm.axis",
    "sizes": """LinearGeneral.in_features LinearGeneral.out_features kernel_size strides
        kernel_dilation input_dilation""",
    "sequence of sizes": "kernel_shape bias_shape window_shape",
    "axes": "LinearGeneral.axis reduction_axes feature_axes",
    "sequence of axes": "broadcast_dims",
    "rate": "rate dropout_rate momentum",
    "epsilon": "epsilon",
    "number": "negative_slope_init",
    "dtype": "dtype param_dtype preferred_element_type lora_dtype lora_param_dtype",
    "flag": """use_bias use_scale use_running_average deterministic update_stats residual keep_rngs
        keep_order reverse return_carry time_major transpose_kernel use_fast_variance decode
        normalize_qk broadcast_dropout is_causal sow_weights outputs error_on_non_matrix
        count_include_pad""",
    "function": """kernel_init bias_init scale_init out_kernel_init out_bias_init embedding_init
        recurrent_kernel_init carry_init a_initializer b_initializer promote_dtype dot_general
        qkv_promote_dtype out_promote_dtype ln_promote_dtype lora_promote_dtype qkv_dot_general
        out_dot_general conv_general_dilated einsum_op gate_fn activation_fn attention_fn merge_fn
        reduce_fn pairwise_fn make_block base_module""",
    "layer": "cell forward_rnn backward_rnn layer_instance",
    "metadata": """kernel_metadata bias_metadata scale_metadata embedding_metadata a_metadata
        b_metadata out_kernel_metadata out_bias_metadata query_ln_scale_metadata
        key_ln_scale_metadata recurrent_kernel_metadata negative_slope_metadata
        transform_metadata""",
    "rngs": "rngs",
    "rngs or key": "Dropout().rngs MultiHeadAttention().rngs",
    "key": "dropout_rng",
    "array": "x inputs inputs_q inputs_k inputs_v query key value bias mask query_input key_input",
    "padding": "padding",
    "precision": "precision",
    "string": "rng_collection",
    "sharding": "out_sharding qkv_sharding",
    "groups": "axis_index_groups",
    "names": "axis_name",
    "equation": "einsum_str",
    "type": "lora_param_type",
    "mapping": "batch_axis",
    "policy": "remat",
    "unroll": "Stack.unroll",
    "filter": "variable_filter broadcast_rngs",
    "lengths": "seq_lengths",
    "carry": "carry",
    "sequence": "per_block",
    "module": "module",
}
WRONG["sequence"] = [None, 3, Thing(), [2.5]]
WRONG["module"] = [3, "a", Thing()]
KIND_OF = {name: kind for kind, names in KIND.items() for name in names.split()}


def public() -> dict[str, Any]:
    """The public layers and functions of layers, found and not listed."""
    found = {}
    for name, thing in vars(nnx).items():
        module = getattr(thing, "__module__", None) or ""
        if module.startswith("refax.layers.") and callable(thing) and not name.startswith("_"):
            if inspect.isclass(thing) or hasattr(thing, "__wrapped__"):
                found[name] = thing
    return {k: v for k, v in found.items() if "initializers" not in v.__module__}


def parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    given = inspect.signature(function).parameters.values()
    return [p for p in given if p.kind not in variadic and p.name != "self"]


def cases() -> list[tuple[str, str, bool, inspect.Parameter]]:
    """(callable, kind, whether it is the call of the layer, parameter) of all arguments."""
    all_of_them = []
    for name, thing in public().items():
        if name in TAKE_ANYTHING:
            continue
        calls = [(thing, False)]
        if inspect.isclass(thing):
            calls = [(thing.__init__, False), (thing.__call__, True)]
        for function, is_call in calls:
            for p in parameters(function):
                short = [f"{name}{'()' if is_call else ''}.{p.name}", f"{name}.{p.name}", p.name]
                if not ANY_VALUE & {*short}:
                    kind = next((KIND_OF[key] for key in short if key in KIND_OF), "unknown")
                    all_of_them.append((name, kind, is_call, p))
    return all_of_them


def fits(name: str, p: inspect.Parameter, value: Any) -> bool:
    return value is None and bool(
        p.default is None or NONE_FITS & {p.name, f"{name}.{p.name}"} or "None" in p.annotation
    )


def shown(value: Any) -> str:
    """What the message must show of a value."""
    if isinstance(value, (jax.Array, np.ndarray)):
        return str(value.dtype)
    if isinstance(value, Thing | type | nnx.Variable):
        return getattr(value, "__name__", type(value).__name__)
    return repr(value)


def test_every_layer_has_an_example_and_every_parameter_a_kind() -> None:
    missing = public().keys() - EXAMPLES.keys() - TAKE_ANYTHING
    assert not missing, "give these an example, so that their arguments are tried"
    unknown = {f"{name}.{p.name}" for name, kind, _, p in cases() if kind == "unknown"}
    assert not unknown, "say of which kind these are"


def attempt(name: str, is_call: bool, options: dict[str, Any]) -> None:
    thing = getattr(nnx, name)
    arguments, inputs = EXAMPLES[name]
    if is_call:
        thing(**arguments)(**{**inputs, **options})
    else:
        made = thing(**{**arguments, **options})
        if inspect.isclass(thing):
            made(**inputs)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_examples_are_valid(name: str) -> None:
    attempt(name, False, {})


@pytest.mark.parametrize("is_call", [False, True], ids=["made", "called"])
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_a_wrong_argument_is_named(name: str, is_call: bool) -> None:
    wrong = []
    for _, kind, _, p in [case for case in cases() if case[0] == name and case[2] is is_call]:
        for value in WRONG[kind]:
            if fits(name, p, value):
                continue
            what = f"{name}{'()' if is_call else ''}: {p.name}={value!r}"
            try:
                attempt(name, is_call, {p.name: value})
            except (TypeError, ValueError) as error:
                text, last = str(error), traceback.extract_tb(error.__traceback__)[-1]
                is_named = text.startswith(name) and re.search(rf"\b{p.name}\b", text)
                is_shown = shown(value) in text or str(np.shape(value)) in text
                if not is_named or not is_shown or "/refax/" not in last.filename:
                    wrong.append(f"{what}: {type(error).__name__}: {text[:200]}")
            except Exception as error:
                wrong.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
            else:
                wrong.append(f"{what}: nothing was raised")
    assert not wrong, "\n".join([f"{len(wrong)} wrong values:", *wrong])
