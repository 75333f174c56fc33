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
    "Conv": (
        {"in_features": 4, "out_features": 3, "kernel_size": 2, "rngs": rngs()},
        {"inputs": X},
    ),
    "ConvTranspose": (
        {"in_features": 4, "out_features": 3, "kernel_size": 2, "rngs": rngs()},
        {"inputs": X},
    ),
    "Dropout": ({"rate": 0.5, "rngs": rngs()}, {"inputs": X}),
    "Einsum": (
        {"einsum_str": "...i,io->...o", "kernel_shape": (4, 3), "rngs": rngs()},
        {"inputs": X},
    ),
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
    "LoRA": ({"in_features": 4, "lora_rank": 2, "out_features": 3, "rngs": rngs()}, {"x": X}),
    "LoRALinear": ({"in_features": 4, "out_features": 3, "lora_rank": 2, "rngs": rngs()}, {"x": X}),
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
TAKE_ANYTHING = {"Identity", "RNNCellBase", "Sequential", "ArgumentError"}
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
    "unroll": [None, -1, 2.5, "a", Thing()],
    "filter": [3, 2.5, Thing()],
    "lengths": [*NO_ARRAY[1:], np.array(3), jnp.ones(2), jnp.ones(3, int), [5, 6.5]],
    "carry": [*NO_TYPE, np.ones(()), np.ones((2, 9), np.float32), np.ones(0), {}],
    "pair": [*NO_TYPE, 3.0, [], {}],
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
    "pair": "LSTMCell.carry OptimizedLSTMCell.carry",
    "sequence": "per_block",
    "module": "module",
}
WRONG["sequence"] = [None, 3, Thing(), [2.5]]
WRONG["module"] = [3, "a", Thing()]
KIND_OF = {name: kind for kind, names in KIND.items() for name in names.split()}


def public() -> dict[str, Any]:
    """The public layers and functions of layers, found and not listed."""
    found = {}
    for name, thing in ((name, getattr(nnx, name)) for name in dir(nnx)):
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
    if isinstance(value, nnx.Variable):
        return str(value.dtype)
    if isinstance(value, Thing | type) or "key<" in repr(value):
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
                is_shown = any(
                    s in text
                    for s in (shown(value), str(value), str(getattr(value, "shape", "no shape")))
                )
                if not is_named or not is_shown or "/refax/" not in last.filename:
                    wrong.append(f"{what}: {type(error).__name__}: {text[:200]}")
            except Exception as error:
                wrong.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
            else:
                wrong.append(f"{what}: nothing was raised")
    assert not wrong, "\n".join([f"{len(wrong)} wrong values:", *wrong])


def conv(*args: Any, **options: Any) -> nnx.Conv:
    return nnx.Conv(4, 6, *args, **options, rngs=rngs())


def norm(name: str = "LayerNorm", *args: Any, **options: Any) -> Any:
    return getattr(nnx, name)(4, *args, **options, rngs=rngs())


def attention(**options: Any) -> nnx.MultiHeadAttention:
    return nnx.MultiHeadAttention(2, 4, deterministic=True, **options, rngs=rngs())


BATCHES = np.ones((3, 5, 4), np.float32)

# What depends on several arguments: a call, and what its error must say.
TOGETHER: list[tuple[Callable[[], Any], list[str]]] = [
    (lambda: dense()(1.0), ["Linear", "input", "()", "in_features=4"]),
    (lambda: dense()(X[..., :3]), ["Linear", "(2, 5, 3)", "in_features=4"]),
    (lambda: dense(dtype=int)(X), ["Linear", "dtype=int", "fractions"]),
    (
        lambda: dense(param_dtype=jnp.int32),
        ["Linear", "kernel_init", "(4, 4)", "param_dtype=int32"],
    ),
    (lambda: dense(kernel_init=lambda: 0), ["Linear", "kernel_init", "(4, 4)"]),
    (
        lambda: dense(bias_init=lambda *_: jnp.ones(3)),
        ["Linear", "bias_init", "(4,)", "float32[3]"],
    ),
    (lambda: norm()(1.0), ["LayerNorm", "feature_axes=(-1,)", "no axis -1", "0 axes"]),
    (lambda: norm(reduction_axes=(0, 0))(X), ["LayerNorm", "reduction_axes=(0, 0)", "twice"]),
    (lambda: norm(reduction_axes=(-1, 2))(X), ["LayerNorm", "reduction_axes=(-1, 2)", "twice"]),
    (lambda: norm(feature_axes=5)(X), ["LayerNorm", "feature_axes=(5,)", "no axis 5", "3 axes"]),
    (lambda: norm("BatchNorm", axis=-4)(X), ["BatchNorm", "axis=(-4,)", "3 axes"]),
    (lambda: norm("GroupNorm", 3), ["GroupNorm", "num_groups=3", "num_features=4"]),
    (lambda: norm("GroupNorm", None, 3), ["GroupNorm", "group_size=3", "num_features=4"]),
    (lambda: norm("GroupNorm", 2)(1.0), ["GroupNorm", "no axis -1", "0 axes"]),
    *[
        (
            lambda name=name: norm(name, **({"num_groups": 2} if name == "GroupNorm" else {}))(
                X, mask=np.ones((2, 3), bool)
            ),
            [name, "mask", "(2, 3)", "(2, 5, 4)"],
        )
        for name in ("LayerNorm", "RMSNorm", "BatchNorm", "GroupNorm", "InstanceNorm")
    ],
    *[
        (
            lambda name=name: norm(
                name, axis_name="batch", **({"num_groups": 2} if name == "GroupNorm" else {})
            )(X),
            [name, "axis_name='batch'", "Cure: ", "nnx.vmap"],
        )
        for name in ("LayerNorm", "RMSNorm", "BatchNorm", "GroupNorm", "InstanceNorm")
    ],
    (
        lambda: nnx.Dropout(0.5, broadcast_dims=(3,), rngs=rngs())(X),
        ["Dropout", "broadcast_dims=(3,)", "3 axes"],
    ),
    (lambda: conv(2, (1, 1)), ["Conv", "strides=(1, 1)", "2 entries", "1 spatial"]),
    (lambda: conv(2, padding=(1, 2)), ["Conv", "padding=(1, 2)", "1 spatial"]),
    (lambda: conv((2, 2), padding=[1]), ["Conv", "padding=[1]", "2 spatial", "Cure"]),
    (lambda: conv(2, feature_group_count=3), ["Conv", "feature_group_count=3", "in_features=4"]),
    (lambda: conv(2, mask=np.ones((2, 4))), ["Conv", "mask", "(2, 4)", "(2, 4, 6)"]),
    (lambda: conv((2, 2, 2))(X[0]), ["Conv", "(5, 4)", "3 spatial axes"]),
    (lambda: conv(2)(X[..., 1:]), ["Conv", "(2, 5, 3)", "in_features=4"]),
    (lambda: nnx.max_pool(X[0], (2, 2)), ["max_pool", "(5, 4)", "window_shape=(2, 2)"]),
    (lambda: nnx.MaxPool((2, 2))(X[0]), ["MaxPool", "(5, 4)", "window_shape=(2, 2)"]),
    (lambda: nnx.MaxPool((2,), strides=(1, 1)), ["MaxPool", "strides=(1, 1)", "1 spatial"]),
    (
        lambda: nnx.avg_pool(X, (2,), padding=((1, 1),) * 2),
        ["avg_pool", "padding=((1, 1), (1, 1))"],
    ),
    (
        lambda: nnx.LinearGeneral((4, 4), 3, axis=(-1, 2), rngs=rngs())(X),
        ["LinearGeneral", "(2, 5, 4)", "(-1, 2)", "different", "in_features=(4, 4)"],
    ),
    (
        lambda: nnx.LinearGeneral((4, 5), 3, rngs=rngs()),
        ["LinearGeneral", "axis=(-1,)", "in_features=(4, 5)"],
    ),
    (
        lambda: nnx.Einsum("ab,bc->ac", (3, 4), rngs=rngs())(X[0]),
        ["Einsum", "'ab,bc->ac'", "(5, 4)", "(3, 4)"],
    ),
    (
        lambda: nnx.Einsum("ab,bc->ac", (4, 3), (4,), rngs=rngs())(X[0]),
        ["Einsum", "bias", "(4,)", "(3,)", "Cure: bias_shape=(3,)"],
    ),
    (
        lambda: nnx.LoRA(4, 2, 3, base_module=dense(), rngs=rngs())(X),
        ["LoRA", "base_module", "float32[2,5,4]", "(2, 5, 3)", "out_features"],
    ),
    (lambda: nnx.LoRA(4, 2, 3, rngs=rngs())(X[..., 1:]), ["LoRA", "(2, 5, 3)", "in_features=4"]),
    (lambda: nnx.Embed(7, 3, rngs=rngs())(X), ["Embed", "float32", "integers", "Cure"]),
    (lambda: nnx.Embed(7, 3, rngs=rngs()).attend(X), ["Embed.attend", "(2, 5, 4)", "features=3"]),
    (lambda: attention(qkv_features=3), ["MultiHeadAttention", "qkv_features=3", "num_heads=2"]),
    (lambda: attention(num_kv_heads=4), ["MultiHeadAttention", "num_heads=2", "num_kv_heads=4"]),
    (lambda: attention()(X[..., 1:]), ["MultiHeadAttention", "(2, 5, 3)", "in_features=(4,)"]),
    (lambda: attention()(X, BATCHES), ["MultiHeadAttention", "(2, 5, 2, 2)", "(3, 5, 2, 2)"]),
    (
        lambda: attention()(X, mask=np.ones((3, 5, 5))),
        ["MultiHeadAttention", "mask", "(3, 5, 5)", "(2, 2, 5, 5)"],
    ),
    (lambda: attention().init_cache((4,)), ["MultiHeadAttention.init_cache", "input_shape=(4,)"]),
    (lambda: nnx.make_causal_mask(1.0), ["make_causal_mask", "x=1.0", "length"]),
    (
        lambda: nnx.make_attention_mask(np.ones((2, 3)), np.ones((3, 3))),
        ["make_attention_mask", "query_input", "(2, 3)", "key_input", "(3, 3)"],
    ),
    (lambda: nnx.combine_masks(X, "x"), ["combine_masks", "masks[1]='x'"]),
    (lambda: nnx.combine_masks(X, BATCHES), ["combine_masks", "(2, 5, 4)", "(3, 5, 4)"]),
    (lambda: nnx.RNN(cell())(X[..., 1:]), ["RNN", "GRUCell", "(2, 3)", "in_features=4"]),
    (lambda: nnx.RNN(cell())(1.0), ["RNN", "()", "num_feature_axes=1"]),
    (lambda: nnx.RNN(cell())(X, seq_lengths=[1, 2, 3]), ["RNN", "seq_lengths", "(3,)", "(2,)"]),
    (lambda: nnx.RNN(cell())(X, initial_carry=3.0), ["RNN", "carry", "hidden_features=3"]),
    (
        lambda: nnx.Bidirectional(nnx.RNN(cell()), nnx.RNN(cell()))(X, initial_carry=[X]),
        ["Bidirectional", "initial_carry", "1 parts", "(forward, backward)"],
    ),
    (
        lambda: nnx.WeightNorm(dense(), feature_axes=3, rngs=rngs()),
        ["WeightNorm", "feature_axes=(3,)", "2 axes"],
    ),
    (lambda: nnx.WeightNorm(norm(), rngs=rngs()), ["WeightNorm", "LayerNorm", "scale", "Cure"]),
]


@pytest.mark.parametrize("i", range(len(TOGETHER)))
def test_arguments_that_do_not_fit_each_other_are_named(i: int) -> None:
    call, parts = TOGETHER[i]
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    text, last = str(error.value), traceback.extract_tb(error.value.__traceback__)[-1]
    assert "/refax/" in last.filename
    assert text.startswith(parts[0])
    assert [part for part in parts if part not in text] == [], text


def test_a_layer_in_a_layer_of_the_users_own_is_named_by_its_class() -> None:
    class Mine(nnx.Linear):
        pass

    with pytest.raises(ValueError, match=r"^Mine: in_features=-1, but must be an int of at leas"):
        Mine(-1, 2, rngs=rngs())


def test_valid_values_of_other_types() -> None:
    two = np.int64(2)
    assert nnx.Linear(np.int32(4), two, use_bias=np.True_, rngs=rngs())(X.tolist()).shape == (
        2,
        5,
        2,
    )
    assert dense()(np.ones((1, 4), int)).dtype == jnp.float32
    assert conv([two], [two], padding=[(1, two)])(X).shape == (2, 4, 6)
    assert conv(np.array([2]), padding=np.int64(1), strides=two)(X).shape == (2, 3, 6)
    assert nnx.max_pool(X, [two], np.array([2]), [two]).shape == (2, 4, 4)
    assert nnx.MaxPool([two], [1], np.int64(1))(X).shape == (2, 6, 4)
    for name in ("LayerNorm", "BatchNorm"):
        assert norm(name)(X.tolist(), mask=(X > 0).tolist()).shape == X.shape
    assert norm("GroupNorm", 2)(X.tolist(), mask=(X > 0).tolist()).shape == X.shape
    assert nnx.Dropout(jnp.array(0.5), rngs=rngs())(X).shape == X.shape
    assert nnx.Dropout(np.float32(0.5), rngs=nnx.Rngs(0).dropout)(X).shape == X.shape
    assert nnx.Dropout(0)(X, rngs=jax.random.PRNGKey(0)).shape == X.shape
    assert norm(epsilon=jnp.array(1e-6), feature_axes=[two], reduction_axes=np.array([2]))(X).shape
    assert norm("BatchNorm", momentum=1, axis=two)(X, use_running_average=np.False_).shape
    assert norm(dtype="bfloat16")(X).dtype == norm(dtype=np.dtype(jnp.bfloat16))(X).dtype
    assert attention(precision="high")(X, mask=np.ones((5, 5)).tolist()).shape == X.shape
    assert nnx.LinearGeneral([4], [two], axis=[-1], rngs=rngs())(X).shape == (2, 5, 2)
    assert nnx.Einsum("...a,ab->...b", [4, two], [two], rngs=rngs())(X).shape == (2, 5, 2)
    assert nnx.RNN(cell())(X, seq_lengths=[1, two], time_major=0).shape == (2, 5, 3)
    assert nnx.LSTMCell(4, 3, rngs=rngs())([X[:, 0, :3], X[:, 0, :3]], X[:, 0])[1].shape == (2, 3)
    assert nnx.Linear(4, 2, param_dtype=None, rngs=rngs()).kernel.dtype == jnp.float32


def test_traced_arrays_fit() -> None:
    def run(x: jax.Array, mask: jax.Array, epsilon: jax.Array, key: jax.Array) -> Any:
        y = norm(epsilon=epsilon)(x, mask=mask)
        return nnx.Dropout(0.5)(dense()(y), rngs=key), attention()(y, mask=mask[:1, :, :1])

    mask = jnp.ones(X.shape, bool)
    ys = jax.jit(run)(X, mask, 1e-6, jax.random.key(0))
    for y, eager in zip(ys, run(jnp.asarray(X), mask, jnp.array(1e-6), jax.random.key(0))):
        np.testing.assert_allclose(y, eager, atol=1e-5)


def test_a_traced_flag_is_told_to_be_static() -> None:
    step = nnx.jit(lambda layer, x, flag: layer(x, deterministic=flag))
    with pytest.raises(ValueError, match=r"(?s)Dropout: deterministic is .*True or False.*static"):
        step(nnx.Dropout(0.5, rngs=rngs()), X, True)
