"""Arguments that do not fit, in every public callable that is no layer: the error says whose.

The callables and their parameters are found, not listed: a new one without an example, or a new
parameter without a kind, fails. (Layers: `tests/layers/test_arguments.py`.)
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from refax import nnx

X = jnp.ones((4, 2))


class Thing:
    """Of no use to anything."""

    def __repr__(self) -> str:
        return "Thing()"


class Own(nnx.Variable):
    """A type for names of its own."""


class Dot:
    """What a Linen module offers."""

    def init(self, rngs: Any, x: Any) -> Any:
        return {"params": {"kernel": jnp.ones((2, 3))}}

    def apply(self, variables: Any, x: Any, rngs: Any = None) -> Any:
        return x @ variables["params"]["kernel"]


class Sowing(nnx.Module):
    def __init__(self) -> None:
        self.count = nnx.Variable(jnp.array(0.0))
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        self.sow(nnx.Intermediate, "x", x)
        return x


def model() -> nnx.Linear:
    return nnx.Linear(2, 3, rngs=nnx.Rngs(0))


def mesh() -> Any:
    return jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def loss(m: Any, x: Any) -> Any:
    return (m(x) ** 2).mean()


def body(carry: Any, x: Any) -> Any:
    return carry + x, carry


def state() -> nnx.State:
    return nnx.state(model())


def graphdef() -> Any:
    return nnx.graphdef(model())


def flat() -> Any:
    return [(("a",), jnp.ones(2)), (("b", "c"), jnp.zeros(1))]


def twice(x: Any) -> Any:
    return 2 * x


def loop(i: Any, x: Any) -> Any:
    return x + i


def train_state() -> nnx.TrainState:
    graphdef, params = nnx.split(model())
    return nnx.TrainState.create(graphdef, params=params, tx=optax.sgd(0.1))


def saved(folder: Any) -> str:
    nnx.save(folder / "saved.safetensors", model())
    return str(folder / "saved.safetensors")


def stepped(folder: Any) -> nnx.Checkpoints:
    checkpoints = nnx.Checkpoints(folder / "steps", asynchronous=False)
    checkpoints.save(1, model())
    return checkpoints


def sown() -> Sowing:
    made = Sowing()
    made(X)
    return made


def entered(context: Any) -> None:
    with context:
        pass


def on(*args: Any) -> Callable[[Any], Any]:
    return lambda f: f(*[a() if a in (model, sown) else a for a in args])


def nothing(_: Any) -> None:
    pass


# name → (arguments by name, or a function of a folder that gives them; what is done with it).
# `filters`, `states`, `args`, …: what is given by position to a parameter with a star.
EXAMPLES: dict[str, tuple[Callable[[Any], dict[str, Any]], Callable[[Any], Any]]] = {}


def example(name: str, given: Any = None, then: Callable[[Any], Any] = nothing) -> None:
    made = given if callable(given) else (lambda folder: given or {})
    EXAMPLES[name] = made, then


# -- filters, states ------------------------------------------------------------------------------
for _name in ("All", "Any"):
    example(_name, {"filters": [nnx.Param]})
example("Not", {"filter": nnx.Param})
example("OfType", {"type": nnx.Param}, lambda f: f((), nnx.Param(1.0)))
example("PathContains", {"key": "a"})
example("PathIn", {"paths": [("a",)]})
example("WithTag", {"tag": "a"})
example("to_predicate", {"filter": nnx.Param})
example("filter_state", lambda _: {"state": state(), "first": nnx.Param, "filters": [...]})
example("split_state", lambda _: {"state": state(), "first": nnx.Param, "filters": [...]})
example("merge_state", lambda _: {"state": state(), "states": [state()]})
example("map_state", lambda _: {"f": lambda p, x: x, "state": state()})
example("from_flat_state", lambda _: {"flat_state": flat()})
example("FlatState", lambda _: {"items": flat()})
example("to_flat_state", lambda _: {"state": state()})
example("to_pure_dict", lambda _: {"state": state()})
example("restore_int_paths", {"pure_dict": {"0": 1}})
example("State", {"mapping": {"a": 1}})
example(
    "replace_by_pure_dict", lambda _: {"state": state(), "pure_dict": nnx.to_pure_dict(state())}
)
# -- transforms -----------------------------------------------------------------------------------
for _name in ("jit", "remat", "checkpoint", "checkify"):
    example(_name, {"f" if _name != "jit" else "fun": loss}, on(model, X))
for _name in ("grad", "value_and_grad"):
    example(_name, {"f": loss}, on(model, X))
example("make_jaxpr", {"f": loss}, on(model, X))
example("vmap", {"f": twice}, on(X))
example("pmap", {"f": twice}, on(X[:1]))
example("transform_metadata", {"f": twice, "partition": "a"}, on(X))
example("scan", {"f": body, "length": 4}, on(jnp.zeros(2), X))
example(
    "shard_map",
    lambda _: {"f": twice, "mesh": mesh(), "in_specs": P("data"), "out_specs": P("data")},
    on(X),
)
example("jit_partial", lambda _: {"fun": loss, "partial_args": [model()]}, on(X))
for _name in ("cached_partial", "cache_args"):
    example(_name, lambda _: {"f": nnx.jit(loss), "cached_args": [model()]}, on(X))
example("cond", {"pred": True, "true_fun": twice, "false_fun": twice, "operands": [X]})
example("switch", {"index": 0, "branches": [twice, twice], "operands": [X]})
example("custom_vjp", {"fun": twice})
example("eval_shape", {"f": twice, "args": [X]})
example("get_abstract_model", lambda _: {"init_fn": model, "mesh": mesh()})
example("fori_loop", {"lower": 0, "upper": 3, "body_fun": loop, "init_val": 0})
example("while_loop", {"cond_fun": lambda x: x < 3, "body_fun": lambda x: x + 1, "init_val": 0})
example("vjp", {"f": twice, "primals": [X]})
example("jvp", {"f": twice, "primals": (X,), "tangents": (X,)})
example("DiffState", {"argnum": 0})
example("StateAxes", {"axes": {nnx.Param: 0}})
example("StateSharding", {"shardings": {nnx.Param: P()}})
example("prefix", lambda _: {"node": model(), "filter_map": {...: 0}})
example("assert_max_traces", {"n": 1}, entered)
# -- verbs ----------------------------------------------------------------------------------------
for _name in ("split", "unpack"):
    example(_name, lambda _: {"node": model(), "filters": [nnx.Param, ...]})
for _name in ("state", "variables"):
    example(_name, lambda _: {"node": model(), "filters": [nnx.Param]})
example("pop", lambda _: {"node": sown(), "filters": [nnx.Intermediate]})
example("clone", lambda _: {"node": model()})
example("flatten", lambda _: {"node": model()})
example("graphdef", lambda _: {"node": model()})
example("merge", lambda _: {"graphdef": graphdef(), "states": [state()]})
example("unflatten", lambda _: {"graphdef": graphdef(), "state": state()})
example("call", lambda _: {"graphdef_state": nnx.split(model())}, lambda c: c(X))
example("update", lambda _: {"node": model(), "state": state()})
example("get_path", lambda _: {"node": model(), "path": "kernel"})
example("set_path", lambda _: {"node": model(), "path": "kernel", "value": jnp.ones((2, 3))})
example("named_variables", lambda _: {"node": model(), "filter": nnx.Param})
example("find_duplicates", lambda _: {"node": model()})
example("map", lambda _: {"f": lambda p, x: x, "node": model()})
example("recursive_map", lambda _: {"f": lambda p, x: x, "node": model()})
for _name in ("vars_as", "with_vars", "set_metadata"):
    example(_name, lambda _: {"node": model()})
for _name in ("view", "with_attributes"):
    example(_name, lambda _: {"node": sown(), "filters": [nnx.Dropout]})
example("view_info", lambda _: {"node": sown(), "filters": [nnx.Dropout]})
example("backup_keys", lambda _: {"node": nnx.Rngs(0)})
example("fork_rngs", lambda _: {"node": nnx.Rngs(0)})
example("split_rngs", lambda _: {"node": nnx.Rngs(0), "splits": 1})
example("with_rngs", lambda _: {"node": nnx.Rngs(0)})
example(
    "reseed", lambda _: {"node": nnx.vmap(nnx.Rngs)(jnp.arange(2)), "stream_keys": {"default": 1}}
)
example("restore_rngs", lambda _: {"backups": nnx.backup_keys(nnx.Rngs(0))})
example("RngStream", {"key": 0})
example("with_partitioning", {"initializer": nnx.initializers.ones, "sharding": ("data",)},
        lambda f: f(jax.random.key(0), (4,)))  # fmt: skip
example("with_metadata", {"initializer": nnx.initializers.ones},
        lambda f: f(jax.random.key(0), (4,)))  # fmt: skip
example("get_named_sharding", lambda _: {"tree": state(), "mesh": mesh()})
example("with_sharding_constraint", lambda _: {"x": X, "axis_resources": P("data"), "mesh": mesh()})
for _name in ("register_variable_name", "set_variable_name"):
    example(_name, lambda _: {"name": "own", "typ": Own, "overwrite": True})
example("variable_name_from_type", {"typ": nnx.Param})
example("variable_type_from_name", {"name": "params"})
example("register_data_type", {"type_": Thing})
for _name in ("set_graph_mode", "set_graph_updates", "use_eager_sharding", "use_scopes"):
    example(_name, {"value": True}, entered)
for _name in ("use_hijax", "use_refs", "use_mutable_arrays"):
    example(_name, {"value": False}, entered)
example("var_defaults")
example("logical_axis_rules", {"rules": [("batch", "data")]}, entered)
example("set_logical_axis_rules", {"rules": []})
example("check_plans", {"enabled": False})
example("VariableMetadata", {"raw_value": X, "metadata": {"tag": "a"}})
# -- devices, inspect, training, weights -----------------------------------------------------------
example("make_sharded", lambda _: {"build": model, "mesh": mesh()})
example("fail_together", {"what": "reading"}, entered)
example("shard", lambda _: {"model": model(), "mesh": mesh(), "patterns": {"kernel": P()}})
example("with_logical_constraint", {"x": X, "names": (None, None)})
example("tabulate", lambda _: {"obj": model(), "input_args": [X]})
example("capture", lambda _: {"fn": Sowing(), "var_types": [nnx.Intermediate]}, on(X))
example("find_nonfinite", lambda _: {"f": lambda: X})
example("profile_table", lambda _: {"f": lambda: X})
example("forward_hooks", lambda _: {"model": model(), "fn": lambda *_: None}, entered)
for _name in ("add_forward_hook", "add_forward_pre_hook"):
    example(_name, lambda _: {"module": model(), "fn": lambda *_: None})
example("Optimizer", lambda _: {"model": model(), "tx": optax.sgd(0.1), "wrt": nnx.Param})
example("ModelAndOptimizer", lambda _: {"model": model(), "tx": optax.sgd(0.1)})
example("EMA", lambda _: {"params": model(), "decay": 0.9})
example("MultiMetric", lambda _: {"metrics": {"loss": nnx.metrics.Average("loss")}})
example("metrics.Average", {"argname": "loss"})
example("metrics.Welford", {"argname": "loss"})
example("metrics.Accuracy", {"threshold": 0.5})
example(
    "TrainState.create", lambda _: {"graphdef": graphdef(), "params": state(), "tx": optax.sgd(0.1)}
)
example("TrainState.apply", lambda _: {"self": train_state(), "state": "params"}, lambda f: f(X))
example("TrainState.replace", lambda _: {"self": train_state(), "fields": {"step": 1}})
example("TrainState.apply_gradients", lambda _: {"self": train_state(), "grads": state()})
example(
    "Average.update",
    lambda _: {"self": nnx.metrics.Average(), "mask": jnp.ones(4), "values": {"values": X}},
)
example("EMA.update", lambda _: {"self": nnx.EMA(model(), 0.9), "updates": model()})
example("EMA.apply_to", lambda _: {"self": nnx.EMA(model(), 0.9), "model": model()})
example("EMA.swap", lambda _: {"self": nnx.EMA(model(), 0.9), "model": model()}, entered)
example(
    "Optimizer.update",
    lambda _: {
        "self": nnx.Optimizer(model(), optax.sgd(0.1), wrt=nnx.Param),
        "model": model(),
        "grads": state(),
    },
)
example("save", lambda folder: {"path": folder / "new.safetensors", "obj": model()})
example("load", lambda folder: {"path": saved(folder), "obj": model()})
example("inspect_file", lambda folder: {"path": saved(folder)})
example("state_dict", lambda _: {"obj": model()})
example("load_state_dict", lambda _: {"obj": model(), "mapping": nnx.state_dict(model())})
example("from_torch", lambda _: {"model": model(), "state_dict": nnx.to_torch(model())})
example("export", lambda _: {"function": model(), "args": [X]})
example("Checkpoints", lambda folder: {"folder": folder / "new"}, lambda c: c.close())
example("Checkpoints.save", lambda folder: {"self": stepped(folder), "step": 2, "objects": model()})
example("Checkpoints.restore", lambda folder: {"self": stepped(folder), "objects": model()})
example("bridge.ToNNX", lambda _: {"module": Dot(), "rngs": nnx.Rngs(0)})
example("bridge.lazy_init", lambda _: {"fn": nnx.bridge.ToNNX(Dot(), nnx.Rngs(0)), "args": [X]})

# -- what fits anything ---------------------------------------------------------------------------
NO_ARGUMENTS_THAT_MAY_NOT_FIT = {
    # any object, pytree or leaf of one, a user's own arguments, or a value of a Variable
    **dict.fromkeys(
        """to_torch as_pure pure display sharding_report has_data is_data is_data_type check_pytree
        iter_graph assert_equal_on_hosts
        iter_children iter_module_children iter_modules named_modules named_parameters as_abstract
        abstract_with_sharding get_partition_spec as_array_vars as_hijax_vars as_immutable_vars
        as_mutable_vars as_pytree_vars as_ref_vars freeze immutable mutable to_arrays to_refs
        Everything Nothing Rngs Variable VariableState BatchStat Cache Intermediate LoRAParam
        OptArray OptState OptVariable Param Perturbation RngCount RngKey RngState Dict List
        data static
        Module Object Pytree Metric metrics.Metric metrics.MetricState metrics.Variable
        metrics.Pytree metrics.MultiMetric metrics.Statistics""".split(),
        "takes any value",
    ),
    **dict.fromkeys(
        "using_eager_sharding using_hijax using_refs get_logical_axis_rules".split(), "none"
    ),
    **dict.fromkeys("Data Static Initializer PureState Filter Carry".split(), "for annotations"),
    **dict.fromkeys("dataclass".split(), "Python's own options"),
    **dict.fromkeys(
        """GraphDef GraphState NodeStates HookHandle NonfiniteReport ProfileRow ProfileTable
        ShardingReport TrainState""".split(),
        "made by refax, not by users",
    ),
    **dict.fromkeys(
        """MergeContext SplitContext UpdateContext current_update_context merge_context
        split_context update_context from_tree to_tree""".split(),
        "a tag is any hashable value, or None",
    ),
}
# Parameters of which anything fits, or that are not checked here, by reason.
ANY_VALUE = {
    "objects, pytrees of them, values": """node obj objects model params tree self value raw_value x
        key init_val grads updates raw graphdef_state PathContains.key module obj init_val key
        get_named_sharding.tree""",
    "a user's own arguments": """args kwargs input_args input_kwargs partial_args cached_args
        operands operand primals tangents Average.update.values Checkpoints.save.objects
        Checkpoints.restore.objects ToNNX.rngs bridge.ToNNX.rngs""",
    "names and values of the user's own": """fields attributes modes reseed.stream_keys
        with_metadata.metadata with_partitioning.metadata set_metadata.metadata
        VariableMetadata.hooks TrainState.apply_gradients.kwargs tabulate.input_kwargs
        Optimizer.update.kwargs Optimizer.update.extra""",
    "looked at in every step of a training loop, which a check would slow": """split.copy state.copy
        merge.copy merge.recreate_variables OfType.type WithTag.tag""",
    "what fits depends on the structure: a leaf, leaves or a State; errors name the place": """
        merge.states unflatten.state""",
    "without effect, see test_mode_switches.py": """graph graph_updates hijax ref mutable
        allow_duplicates pmap.donate_argnums""",
    "handed on as it is: the error of JAX, orbax or rich names it": """options axis_name
        spmd_axis_name reduce_axes remat.policy checkpoint.policy errors axis_env devices backend
        polymorphic table_kwargs column_kwargs console_kwargs pred index lower upper
        _split_transpose axis_resources with_partitioning.sharding""",
}

NO_TYPE = [None, "three", Thing()]
NO_INT = [*NO_TYPE, 2.5, True, [[2]], {}]
WRONG: dict[str, list[Any]] = {
    "filter": [3, 2.5, Thing(), (nnx.Param, 3)],
    "filters": [3, 2.5, Thing(), (nnx.Param, 3)],
    "flag": [None, "yes", 2, 0.5, [], Thing()],
    "function": [None, "relu", 3, Thing()],
    "type": [None, "Param", 3, Thing(), nnx.Param(1.0)],
    "variable type": [None, "Param", 3, int, Thing(), nnx.Param(1.0)],
    "mapping": [None, 3, "a", Thing(), [1]],
    "state": [None, 3, "a", Thing()],
    "path": [None, 3, Thing(), 2.5, "kernal"],
    "paths": [None, 3, Thing()],
    "position": NO_INT,
    "positions": [*NO_TYPE, 2.5, True, [2.5], {}],
    "positions to differentiate": [*NO_TYPE, 2.5, True, [2.5], {}],
    "positions of parameters": ["three", Thing(), 2.5, [2.5], True, 9, {}],
    "names of parameters": [3, [3], "y", Thing()],
    "axes": ["a", 2.5, Thing(), True, jnp.ones(2)],
    "specs": ["data", 2.5, Thing(), 3],
    "size": [*NO_INT, 0, -1],
    "count": [*NO_INT, -1],
    "unroll": [*NO_TYPE, -1, 2.5],
    "metadata of a transform": [3, "a", Thing(), [("partition_name", "x")], {3: "a"}],
    "entries by filter": [None, 3, "a", Thing(), {3: 0}, [3]],
    "mesh": ["data", 3, Thing(), ("data",)],
    "sharding": ["data", 3, Thing()],
    "decay": [*NO_TYPE, -0.1, 1.5, float("nan"), True, [0.5]],
    "number": ["three", Thing(), [0.5], 1j, True],
    "dtype": ["float33", 3, [], Thing(), str, object],
    "dtype of a file": [None, "modell", 3, [], Thing()],
    "string": [None, 3, Thing(), ["a"]],
    "strings by name": [3, "a", Thing(), {3: "a"}, {"a": 3}],
    "file": [None, 3, Thing(), [], 2.5],
    "bytes": [None, "5XB", -1, 0, Thing(), True, [5]],
    "step": [*NO_TYPE, -1, 2.5, True],
    "best": [3, ("loss", "maximal"), ("loss",), Thing(), {}],
    "rename": [3, "a", Thing(), {3: "a"}, {"a": 3}, {"(": ""}],
    "notes": [3, "a", Thing(), {"a": Thing()}],
    "platforms": [3, "cpu", Thing(), [3]],
    "rules": [None, 3, "a", Thing(), [3], [("batch", 3)]],
    "patterns": [None, 3, "a", [("*", P())], {"*.kernal": P()}, {3: P()}, {"*": 3}],
    "axis names": [None, 3, "ab", (3, None), Thing()],
    "method": [None, 3, "__cal__", Thing()],
    "columns": [3, "path", ["pth"], Thing(), [3]],
    "transformation": [None, "adam", 3, Thing(), optax.adam],
    "streams": [*NO_TYPE, -1, 2.5, True, (2, "a"), {}],
    "streams by filter": ["three", Thing(), -1, 2.5, {3: 2}, {...: "a"}],
    "policy": [None, "maximal", 3, Thing()],
    "backups": [None, 3, [3], "a", Thing()],
    "mask": ["a", Thing()],
    "fields": [None, 3, "parms", Thing()],
    "key": [None, 2.5, "a", Thing(), jnp.ones(3)],
    "sequence": [None, 3, Thing()],
    "metrics": [{"loss": 3}, {"loss": None}, {"update": 3}, {"loss": nnx.metrics.Average}],
    "graphdef": [None, 3, "a", Thing()],
    "entry by filter": [None, 3, "a", Thing(), {3: 0}],
    "name of a type": [None, 3, Thing(), "parms"],
    "files": [None, 3],
    "module": [None, 3, "a", Thing()],
    "flat state": [None, 3, "a", Thing(), [3]],
}
KIND = {
    "filter": """filter first wrt only beside variable_types fork""",
    "filters": "filters",
    "flag": """has_aux holomorphic allow_int return_shape reverse prevent_cse value enabled copy
        variables arrays with_paths recreate_variables copy_variables raise_if_not_found squeeze
        overwrite allow_register strict aliases asynchronous zero_debias measure_time compute_flops
        compute_vjp_flops sort exact var_defaults.hijax""",
    "function": """f fun fn true_fun false_fun body_fun cond_fun init_fn initializer build pre
        row_filter transform extract_fn replace_fn function""",
    "type": "OfType.type cls type_",
    "variable type": "typ base var_types method_outputs",
    "mapping": """State.mapping pure_dict load_state_dict.mapping
        VariableMetadata.metadata""",
    "state": """state states init to_pure_dict.state TrainState.create.params
        TrainState.apply_gradients.grads""",
    "flat state": "flat_state items",
    "path": "path",
    "paths": "paths",
    "position": "argnum",
    "positions to differentiate": "argnums",
    "positions of parameters": """static_argnums donate_argnums static_broadcasted_argnums
        nondiff_argnums""",
    "names of parameters": "static_argnames donate_argnames nondiff_argnames",
    "axes": "in_axes out_axes",
    "specs": "in_specs out_specs",
    "sharding": "in_shardings out_shardings",
    "size": "keep",
    "count": "axis_size scan.length n vjp_order depth TrainState.create.step",
    "unroll": "unroll",
    "metadata of a transform": "transform_metadata",
    "entries by filter": "axes shardings",
    "entry by filter": "filter_map",
    "mesh": "mesh",
    "decay": "decay",
    "number": "threshold",
    "dtype": "EMA.dtype",
    "dtype of a file": "dtype",
    "string": "tag what argname partition register_variable_name.name set_variable_name.name",
    "name of a type": "variable_type_from_name.name",
    "strings by name": "save.metadata",
    "file": "save.path from_torch.state_dict load.path inspect_file.path folder",
    "bytes": "max_file_size",
    "step": "Checkpoints.save.step Checkpoints.restore.step",
    "best": "best",
    "rename": "rename",
    "notes": "notes",
    "platforms": "platforms",
    "rules": "rules",
    "patterns": "patterns",
    "axis names": "names",
    "method": "method",
    "columns": "columns",
    "transformation": "tx",
    "streams": "splits",
    "streams by filter": "split broadcast",
    "policy": "reseed.policy",
    "backups": "backups",
    "mask": "mask",
    "fields": "TrainState.apply.state",
    "key": "RngStream.key",
    "sequence": "branches jvp.primals jvp.tangents",
    "metrics": "metrics",
    "graphdef": "graphdef",
    "module": "obj@tabulate add_forward_hook.module add_forward_pre_hook.module tabulate.obj",
    "hooks": "on_set_value on_get_value on_create_value on_add_axis on_remove_axis",
    "flag or None": "collapse",
}
WRONG["hooks"] = [None, 3, "a", Thing(), [3]]
WRONG["flag or None"] = WRONG["flag"]
KIND_OF = {name: kind for kind, names in KIND.items() for name in names.split()}
LEFT = {name: reason for reason, names in ANY_VALUE.items() for name in names.split()}
NONE_FITS = {"axes", "specs", "sharding", "filter", "streams by filter"}
DECORATORS = {
    "custom_vjp",
    *"""jit remat checkpoint checkify grad value_and_grad make_jaxpr vmap
    pmap transform_metadata scan shard_map""".split(),
}


def public() -> dict[str, Any]:
    """The public callables that are no layers, no errors and no functions of JAX."""
    found: dict[str, Any] = {}
    for prefix, space in (("", nnx), ("metrics.", nnx.metrics), ("bridge.", nnx.bridge)):
        for name in dir(space) if space is nnx else vars(space):  # `nnx` loads some of them later
            thing = getattr(space, name)
            module = getattr(thing, "__module__", None) or ""
            is_error = inspect.isclass(thing) and issubclass(thing, BaseException)
            if callable(thing) and not name.startswith("_") and not is_error:
                if module.startswith("refax.") and not module.startswith("refax.layers."):
                    found[prefix + name] = thing
    methods = [nnx.TrainState, nnx.EMA, nnx.Optimizer, nnx.Checkpoints, nnx.metrics.Average]
    for cls in methods:
        for name in vars(cls):
            if not name.startswith("_") and callable(getattr(cls, name)):
                found[f"{cls.__name__}.{name}"] = getattr(cls, name)
    return found


def named(name: str) -> Any:
    return public()[name]


def parameters(name: str) -> list[inspect.Parameter]:
    function = named(name)
    function = function.__init__ if inspect.isclass(function) else function
    return [p for p in inspect.signature(function).parameters.values() if p.name != "self"]


def lookup(table: dict[str, str], name: str, parameter: str) -> str | None:
    keys = (f"{name}.{parameter}", f"{name.partition('.')[2]}.{parameter}", parameter)
    return next((table[key] for key in keys if key in table), None)


def kind_of(name: str, p: inspect.Parameter) -> str | None:
    """The kind of an argument; None of one that is left."""
    specific = f"{name}.{p.name}"
    if specific not in LEFT:
        found = KIND_OF.get(specific) or (None if p.name in LEFT else KIND_OF.get(p.name))
        return found or (None if p.name in LEFT else "unknown")
    return None


def test_every_callable_has_an_example_and_every_parameter_a_kind() -> None:
    missing = public().keys() - EXAMPLES.keys() - NO_ARGUMENTS_THAT_MAY_NOT_FIT.keys()
    missing = {m for m in missing if parameters(m)}
    assert not missing, "give these an example, so that their arguments are tried"
    given = [(name, p) for name in EXAMPLES for p in parameters(name)]
    unknown = {f"{n}.{p.name}" for n, p in given if kind_of(n, p) == "unknown"}
    assert not unknown, "say of which kind these are, or why nothing is to be checked"


def attempt(name: str, folder: Any, options: dict[str, Any]) -> None:
    make, then = EXAMPLES[name]
    given = {**make(folder), **options}
    args, kwargs = [], {}
    if "self" in given:
        args.append(given.pop("self"))
    ordered = parameters(name)
    last = max((i for i, p in enumerate(ordered) if p.kind is p.VAR_POSITIONAL and p.name in given),
               default=-1)  # fmt: skip
    for i, p in enumerate(ordered):
        if p.name not in given:
            continue
        if p.kind is p.VAR_POSITIONAL:
            args += given[p.name]
        elif p.kind is p.POSITIONAL_ONLY or i < last:
            args.append(given[p.name])
        elif p.kind is p.VAR_KEYWORD:
            kwargs.update(given[p.name])
        else:
            kwargs[p.name] = given[p.name]
    then(named(name)(*args, **kwargs))


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_examples_are_valid(name: str, tmp_path: Any) -> None:
    attempt(name, tmp_path, {})


def fits(name: str, p: inspect.Parameter, value: Any) -> bool:
    """Whether None, or a name alone, is what may be given."""
    return value is None and (
        p.default is None
        or "None" in str(p.annotation)
        or kind_of(name, p) in NONE_FITS
        or (p.name in ("f", "fun") and name in DECORATORS)
    )


def shown(value: Any) -> list[str]:
    """Any of these shows the value."""
    texts = [str(value), repr(value), getattr(value, "__name__", type(value).__name__)]
    texts.append(str(getattr(value, "dtype", type(value))))
    if isinstance(value, (list, tuple, dict, set)) and len(value):
        inner = value.values() if isinstance(value, dict) else value
        texts += [repr(v) for v in inner] + [type(v).__name__ for v in inner]
        texts += map(repr, value)
    if isinstance(value, dict):
        texts += [v.__name__ for v in value.values() if isinstance(v, type)]
    return texts


def fault(name: str, p: inspect.Parameter, value: Any, folder: Any) -> str | None:
    """What is wrong with the answer to an argument that does not fit."""
    star = p.kind is p.VAR_POSITIONAL
    given = [value] if star else value
    try:
        attempt(name, folder, {p.name: given})
    except (TypeError, ValueError, LookupError, AssertionError, OSError) as error:
        text = str(error)
        last = traceback.extract_tb(error.__traceback__)[-1]
        own = [*name.split("."), getattr(named(name), "__name__", "")]  # or of its first name
        missing = []
        if not any(re.search(rf"\b{part}\b", text) for part in own):
            missing.append("callable")
        if not re.search(rf"\b{p.name}\b", text):
            missing.append("argument")
        if not any(s in text for s in shown(value)):
            missing.append("value")
        if "/refax/" not in last.filename:
            missing.append("refax")
        if not re.search(r"Cure: |must |takes |fits", text):
            missing.append("what would fit")
        return f"{type(error).__name__} without {missing}: {text[:160]!r}" if missing else None
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:160]!r}"
    return "nothing was raised"


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_a_wrong_argument_is_named(name: str, tmp_path: Any) -> None:
    wrong = []
    for p in parameters(name):
        kind = kind_of(name, p)
        for number, value in enumerate(WRONG[kind] if kind else ()):
            if not fits(name, p, value):
                folder = tmp_path / f"{p.name}-{number}"
                folder.mkdir()
                found = fault(name, p, value, folder)
                if found is not None:
                    wrong.append(f"[{kind}] {name}: {p.name}={value!r}: {found}")
    assert not wrong, "\n".join([f"{len(wrong)} wrong answers:", *wrong])
