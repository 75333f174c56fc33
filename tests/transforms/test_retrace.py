"""Why `nnx.jit` traced again: `explain()`, the logger, one warning, and a limit to assert."""

import dataclasses
import functools
import logging
import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

from refax import nnx
from tests.models import Block, Dense, Node

pytestmark = pytest.mark.usefixtures("strict_numerics")

X = jnp.ones((3, 2))


def traced(function, *calls, **options):
    """The explanation of a jitted function after these calls, without the headings."""
    f = nnx.jit(function, **options)
    for call in calls:
        call(f)
    lines = f.explain().splitlines()
    assert lines[0].endswith(f"traced {len(calls)} times.")
    assert sum("nearest earlier" in line for line in lines) == len(calls) - 1
    return [line.strip() for line in lines[1:] if "nearest earlier" not in line]


def after(change, *args):
    """A call with a model, after a change of it."""

    def call(f):
        change(MODEL["model"])
        f(MODEL["model"], *args)

    return call


MODEL: dict = {}


@pytest.fixture(autouse=True)
def fresh_model():
    MODEL["model"] = Block(2)


def nothing(model):
    pass


def append(model):
    model.layers.append(Dense(2, 2))


def tie(model):
    model.tied = model.layers[1].kernel


def annotate(model):
    model.layers[0].kernel.set_metadata(tag="new")


def replace(model):
    model.layers[1] = Node(w=nnx.Param(jnp.ones(2)))


def no_array(model):
    model.offset = "text"


def wider(model):
    model.layers[0].bias.value = jnp.ones(5)


@pytest.mark.parametrize(
    "change, line",
    [
        (lambda m: m.eval(), "model.parts.norm.use_running_average: False → True"),
        (lambda m: setattr(m, "name", "other"), "model.name: 'block' → 'other'"),
        (lambda m: setattr(m, "activation", jnp.sin), "model.activation: "),
        (lambda m: setattr(m.layers[0], "extra", 1.5), "model.layers[0].extra: nothing → 1.5"),
        (lambda m: delattr(m, "name"), "model.name: 'block' → nothing"),
        (append, "model.layers[2]: nothing → Dense"),
        (lambda m: m.layers.pop(), "model.layers[1]: Dense → nothing"),
        (replace, "model.layers[1]: Dense → Node"),
        (tie, "model.tied: `model.layers[0].kernel` → `model.layers[1].kernel`"),
        (annotate, "model.layers[0].kernel.tag: nothing → 'new'"),
        (no_array, "model.offset: an array → 'text'"),
        (wider, "model.layers[0].bias: float32[2] → float32[5]"),
    ],
)
def test_a_change_of_the_object(change, line):
    lines = traced(lambda model: model.tied * 1, after(nothing), after(change))
    assert any(found.startswith(line) for found in lines), lines


@pytest.mark.parametrize(
    "first, second, lines",
    [
        (X, X[:2], ["x: float32[3,2] → float32[2,2]"]),
        (X, X.astype(jnp.float16), ["x: float32[3,2] → float16[3,2]"]),
        (3, 3.0, ["x: int32[] (a Python scalar) → float32[] (a Python scalar)"]),
        ({"a": X}, {"a": X, "b": X}, ["x['b']: nothing → float32[3,2]"]),
        ([X], [], ["x[0]: float32[3,2] → nothing"]),
    ],
)
def test_a_change_of_an_argument(first, second, lines):
    assert traced(lambda x: 0, lambda f: f(first), lambda f: f(second)) == lines
    by_name = traced(lambda *, x: 0, lambda f: f(x=first), lambda f: f(x=second))
    assert by_name == lines


def test_the_names_of_arguments():
    model = Dense(2, 2)
    lines = traced(
        lambda a, *rest, **named: 0,
        lambda f: f(1, [model], key={"m": Node(w=1)}),
        lambda f: f(1, [model], key={"m": Node(w=2)}),
        lambda f: f(1, [Dense(2, 3)], key={"m": Node(w=2)}),
    )
    assert sorted(lines) == [
        "key['m'].w: 1 → 2",
        "rest[0][0].bias: float32[2] → float32[3]",
        "rest[0][0].kernel: float32[2,2] → float32[2,3]",
        "rest[0][0].outputs: 2 → 3",
    ]


def test_static_arguments():
    lines = traced(
        lambda x, mode, flag=False: x,
        lambda f: f(X, "train"),
        lambda f: f(X, "eval"),
        lambda f: f(X, "eval", flag=True),
        static_argnames=("mode", "flag"),
    )
    assert lines == ["mode: 'train' → 'eval'", "flag: nothing → True"]


def test_optimizers_made_by_factories():
    model = Dense(2, 2)

    def step(model, optimizer):
        with jax.numpy_dtype_promotion("standard"):  # optax is not strict
            optimizer.update(model, nnx.state(model, nnx.Param))

    def call(tx):
        return lambda f: f(model, nnx.Optimizer(model, tx, wrt=nnx.Param))

    f = nnx.jit(step)
    for _ in range(3):  # equal optimizers, made anew
        call(optax.adam(1e-3))(f)
    assert f.explain() == "test_optimizers_made_by_factories.<locals>.step: traced 1 time."
    (line,) = traced(step, call(optax.adam(1e-3)), call(optax.adam(1e-2)))
    assert line.startswith("optimizer.tx.update:") and "0.001" in line and "0.01)" in line


def test_compared_with_the_nearest_trace():
    model = Block(2)

    def toggle(train):
        def call(f):
            model.train() if train else model.eval()
            f(model, X if train else X[:1])

        return call

    lines = traced(
        lambda model, x: 0,
        toggle(True),
        toggle(False),
        lambda f: f(model, X[:2]),  # in eval, with another shape: near to the second one
    )
    assert lines[-1] == "x: float32[1,2] → float32[2,2]"


def test_nothing_that_can_be_seen():
    f = nnx.jit(lambda x: x + 1)
    f(X)
    f.clear_cache()
    f(X)
    assert "no difference in objects, arguments or settings of JAX" in f.explain()


def test_long_explanations_are_cut():
    f = nnx.jit(lambda x: 0)
    f([X] * 2), f([X[:1]] * 40)
    assert "… and 20 more differences" in f.explain()


def test_wrappers_of_one_function_share_their_traces():
    def double(x):
        return 2 * x

    nnx.jit(double)(X), nnx.jit(double)(X[:1])
    assert "traced 2 times" in nnx.jit(double).explain()


# -- logging and the warning ---------------------------------------------------------------------


def test_the_logger(caplog):
    f = nnx.jit(lambda x: x)
    with caplog.at_level(logging.INFO, logger="refax.retrace"):
        f(X), f(X), f(X[:1])
    (record,) = caplog.records
    assert record.name == "refax.retrace"
    assert "traced again (2 times now): x: float32[3,2] → float32[1,2]" in record.getMessage()


def test_one_warning_after_more_than_eight_retraces():
    model = Node(w=nnx.Param(X), step=0)

    @nnx.jit
    def update(model, x):
        return model.w * x.sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(9):  # the first trace and eight retraces
            model.step = i
            update(model, X[: 1 + i % 2])
    with pytest.warns(nnx.RetraceWarning) as caught:
        for i in range(9, 15):
            model.step = i
            update(model, X)
    (warning,) = caught
    text = str(warning.message)
    assert "update` (" in text and "was traced 10 times" in text and "model.step: 8 → 9" in text
    assert "The commonest reason (9 times)" in text and "nnx.Variable" in text
    assert warning.filename == __file__
    assert "trace 15" in update.explain()


def test_the_cure_for_shapes():
    f = nnx.jit(lambda x: x)
    with pytest.warns(nnx.RetraceWarning, match=r"float32\[9,2\] → float32\[10,2\].\n.*padding"):
        for i in range(1, 12):
            f(jnp.ones((i, 2)))


# -- a limit -------------------------------------------------------------------------------------


def test_assert_max_traces():
    f, g = nnx.jit(lambda x: x), nnx.jit(lambda x: x)
    with nnx.assert_max_traces(1):
        f(X), f(X), g(X)
    with nnx.assert_max_traces(0):
        f(X)
    with pytest.raises(
        AssertionError, match=r"traced 2 times, more than 1(.|\n)*x: float32\[3,2\]"
    ):
        with nnx.assert_max_traces(1):
            f(X[:1]), f(X[:2])
    with nnx.assert_max_traces(0, f):
        g(X[:1])
    with pytest.raises(AssertionError):
        with nnx.assert_max_traces(2), nnx.assert_max_traces(0, g):
            g(X[:2])
    with pytest.raises(KeyError):  # the block's own error comes first
        with nnx.assert_max_traces(0):
            f(jnp.ones(7))
            raise KeyError


def test_toggling_modes_retraces_once_each():
    model = Block(2)
    f = nnx.jit(lambda model, x: model(x))
    f(model, X)
    model.eval()
    f(model, X)
    with nnx.assert_max_traces(0):
        for _ in range(3):
            model.train()
            f(model, X)
            model.eval()
            f(model, X)


# -- what looks the same in print ------------------------------------------------------------------


class Config:
    def __init__(self, n):
        self.n = n

    def __repr__(self):
        return "Config"

    def method(self):
        return self.n


class ByValue(Config):
    def __eq__(self, other):
        return self.n == other.n

    def __hash__(self):
        return hash(self.n)


@dataclasses.dataclass(frozen=True)
class Sizes:
    width: int
    inner: tuple = (1, 2)


def closing_over(rate):
    return lambda x: x * rate


def with_default(rate):
    def scaled(x, rate=rate):
        return x * rate

    return scaled


LOOK_ALIKE = {
    "by identity": (Config(1), Config(1), ": a Config → another Config, which is not equal, "
                    "compared by identity"),
    "by its own comparison": (ByValue(1), ByValue(2), ": a ByValue → another ByValue, which is not "
                              "equal, compared by ByValue.__eq__"),
    "a field": (Sizes(1), Sizes(2), ".width: 1 → 2"),
    "deep in a field": (Sizes(1), Sizes(1, (1, 3)), ".inner[1]: 2 → 3"),
    "two lambdas": (lambda x: x + 1,
                    lambda x: x + 2, "test_retrace.py:"),
    "two lambdas of one line": (*(eval("lambda x: x + 1, lambda x: x + 2")), "same place"),
    "what a lambda closes over": (closing_over(0.1), closing_over(0.2),
                                  "0.2"),
    "a default": (with_default(0.1), with_default(0.2), "0.2"),
    "a partial": (functools.partial(max, 1), functools.partial(max, 2), ".args[0]: 1 → 2"),
    "methods of two objects": (Config(1).method, Config(1).method,
                               ": `method` of a Config → of another Config"),
    "a tuple of them": ((1, Config(1)), (1, Config(1)), "[1]: a Config → another Config"),
    "objects of types of one name": (type("Same", (Config,), {})(1), type("Same", (Config,), {})(1),
                                     " → of another type of that name"),
    "numbers of two types": (1, True, ": 1 → True"),
    "a text and a number": ("1", 1, ": '1' → 1"),
}  # fmt: skip


@pytest.mark.parametrize("old, new, line", LOOK_ALIKE.values(), ids=LOOK_ALIKE.keys())
@pytest.mark.parametrize("where", ["an attribute", "metadata", "a static argument"])
def test_what_looks_alike_is_told_apart(old, new, line, where):
    if where == "an attribute":
        place, objects, options = "model.config", [Node(config=x) for x in (old, new)], {}
    elif where == "metadata":
        weights = [nnx.Param(jnp.ones(2), config=x) for x in (old, new)]
        place, objects, options = "model.w.config", [Node(w=w) for w in weights], {}
    else:
        place, objects, options = "model", [old, new], {"static_argnums": 0}
    lines = traced(lambda model: 0, *(lambda f, x=x: f(x) for x in objects), **options)
    (found,) = lines
    assert found.startswith(place) and line in found, found
    left, _, right = found.removeprefix(place).partition(": ")[2].partition(" → ")
    assert left != right and "0x" not in found


CONTAINERS = {
    "a list and a tuple": ([X], (X,), "x: list → tuple"),
    "nothing and an array": (None, X, "x: None → "),
    "keys": ({"a": X}, {"b": X}, "x['b']: nothing → float32[3,2]"),
    "an empty list and a dict": ([], {}, "x: list → dict"),
    "deep": ({"a": [(X,)]}, {"a": [[X]]}, "x['a'][0]: tuple → list"),
    "weak types": (1.0, jnp.float32(1.0), "x: float32[] (a Python scalar) → float32[]"),
}


@pytest.mark.parametrize("old, new, line", CONTAINERS.values(), ids=CONTAINERS.keys())
def test_containers_of_arguments(old, new, line):
    lines = traced(lambda x: 0, lambda f: f(old), lambda f: f(new))
    assert any(found.startswith(line) for found in lines), lines


def test_settings_of_jax():
    f = nnx.jit(lambda x: x * 2)
    f(X)
    with jax.default_matmul_precision("highest"):
        f(X)
    assert "jax_default_matmul_precision: None → 'highest'" in f.explain()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        f(X)
    assert "mesh: " in f.explain()


def test_one_trace_compiled_twice():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def spread(spec):
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    model = Node(scale=nnx.Param(jnp.ones(8)), other=nnx.Param(jnp.ones(8)))

    @nnx.jit
    def double(model, x):
        return model.scale * x

    x = jax.device_put(jnp.ones(8), spread(()))
    model.scale.value = jax.device_put(model.scale.value, spread(()))
    double(model, x)
    assert double.explain().endswith("double: traced 1 time.")
    double(model, x)
    model.scale.value = jax.device_put(model.scale.value, spread(("data",)))
    double(model, x)
    lines = double.explain().splitlines()
    assert lines[0].endswith("double: traced 1 time, compiled 2 times.")
    assert lines[1:] == [
        "another compilation, compared with the nearest earlier one:",
        f"  model.scale: {spread(()).spec} → {spread(('data',)).spec}",
    ]
    double(model, jax.device_put(x, spread(("data",))))
    assert f"  x: {spread(()).spec} → {spread(('data',)).spec}" in double.explain()
    with nnx.assert_max_traces(0):
        double(model, x)  # found again
    assert double.explain().count("another compilation") == 2


def test_a_compilation_inside_of_a_trace_is_not_counted():
    @nnx.jit
    def f(x):
        with jax.ensure_compile_time_eval():
            table = jnp.arange(7.0).reshape(7, 1) ** 3  # compiled while f is traced
        return x * table.sum()

    f(X)
    f(X)
    assert f.explain().endswith("f: traced 1 time.")
