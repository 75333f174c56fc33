"""Operations are named by the path of the Module that made them, in every transform."""

import abc
import asyncio
import copy
import dataclasses
import functools
import inspect
import pickle
import re
import subprocess
import sys
import threading
import traceback
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import optax
import pytest

from refax import nnx
from refax.inspect.interpreter import innermost
from refax.verbs import scopes as scopes_module
from refax.verbs.scopes import running, watching

T = TypeVar("T")


class Layer(nnx.Module):
    """sin(w * x): the operation `sin` is this one's and no other's."""

    def __init__(self, w: float = 0.5):
        self.w = nnx.Param(jnp.array(w))

    def __call__(self, x):
        return jnp.sin(self.w * x)


class Model(nnx.Module):
    def __init__(self):
        self.blocks = nnx.List([Layer(), Layer()])
        self.named = {"a": Layer()}

    def encode(self, x):
        for block in self.blocks:
            x = block(x)
        return jnp.tanh(x)

    def __call__(self, x):
        return self.named["a"](self.encode(x))


PATHS = {"sin": {"model.blocks.0", "model.blocks.1", "model.named.a"}, "tanh": {"model.encode"}}
X = jnp.ones(3)


def scopes_of(jaxpr, outside=""):
    """(operation, its whole scope) of every equation, inside of other programs too."""
    for equation in jaxpr.eqns:
        scope = f"{outside}/{equation.source_info.name_stack}"
        yield equation.primitive.name, scope
        inside = list(equation.params.values())
        for inner in jax.tree.leaves(inside, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from scopes_of(inner, scope)


def found(function, *args):
    """By operation, the innermost scopes in which a program has it, transforms stripped."""
    scopes = {}
    for name, scope in scopes_of(nnx.jit(function).trace(*args).jaxpr.jaxpr):
        last = scope.rstrip("/").rpartition("/")[2]
        while call := re.fullmatch(r"\w+\((.*)\)", last):
            last = call[1]
        scopes.setdefault(name, set()).add(last)
    return scopes


def in_grad(model, x):
    return nnx.grad(lambda model: model(x).sum())(model)


def in_value_and_grad_of_closure(model, x):
    return nnx.value_and_grad(lambda x: model(x).sum())(x)


def in_vmap(model, x):
    return nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(model, x)


def in_scan(model, x):
    @nnx.scan(in_axes=(nnx.Carry, None), out_axes=nnx.Carry, length=2)
    def body(x, m):
        return m(x)

    return body(x, model)


def in_remat(model, x):
    return nnx.grad(lambda m, x: nnx.remat(lambda m, x: m(x))(m, x).sum())(model, x)


def in_cond(model, x):
    return nnx.cond(x[0] > 0, lambda m, x: m(x), lambda m, x: x, model, x)


def in_switch(model, x):
    return nnx.switch(x[0].astype(int), [lambda m, x: x, lambda m, x: m(x)], model, x)


def in_while_loop(model, x):
    def body(pair):
        m, x = pair
        return m, m(x)

    return nnx.while_loop(lambda pair: pair[1][0] > 1, body, (model, x))[1]


def in_fori_loop(model, x):
    return nnx.fori_loop(0, 2, lambda i, pair: (pair[0], pair[0](pair[1])), (model, x))[1]


def in_jvp(model, x):
    return nnx.jvp(lambda x: model(x), (x,), (x,))


def in_vjp(model, x):
    y, pull = nnx.vjp(lambda m, x: m(x), model, x)
    return pull(y)


def in_both_styles(model, x):
    return jax.vmap(model)(x)


def in_nested(model, x):
    return nnx.vmap(lambda m, x: in_grad(m, x), in_axes=(None, 0))(model, x)


TRANSFORMS = [
    lambda model, x: model(x),
    in_grad,
    in_value_and_grad_of_closure,
    in_vmap,
    in_scan,
    in_remat,
    in_cond,
    in_switch,
    in_while_loop,
    in_fori_loop,
    in_jvp,
    in_vjp,
    in_both_styles,
    in_nested,
]


@pytest.mark.parametrize("function", TRANSFORMS, ids=lambda f: f.__name__)
def test_every_transform_keeps_the_path_of_the_module(function):
    model = Model()
    scopes = found(lambda model, x: function(model, x), model, X)
    for operation, paths in PATHS.items():
        assert scopes[operation] == paths
    if "cos" in scopes:  # the derivative of sin
        assert scopes["cos"] <= PATHS["sin"]
    # ... and the switch takes every one away.
    with nnx.use_scopes(False):
        without = found(lambda model, x: function(model, x), model, X)
    assert not any("model" in scope for of in without.values() for scope in of)
    assert without.keys() == scopes.keys()


def test_backward_operations_say_so_and_the_update_is_the_optimizers():
    model = Model()
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    @nnx.jit
    def train_step(model, optimizer, x):
        grads = nnx.grad(lambda model: (model(x) ** 2).sum())(model)
        optimizer.update(model, grads)

    text = train_step.lower(model, optimizer, X).compile().as_text()
    names = set(re.findall(r'op_name="([^"]*)"', text))
    assert any(re.search(r"jvp\(model\.blocks\.1\)/cos", name) for name in names)
    assert any(re.search(r"transpose\(jvp\(model\.named\.a\)\)/mul", name) for name in names)
    assert any("optimizer.update/sqrt" in name for name in names)


def test_paths_begin_with_arguments_in_containers_and_by_keyword():
    def f(pair, *, config):
        return pair["model"](X) + config[0](X)

    scopes = found(lambda model, x: f(model, config=x), {"model": Layer()}, [Layer()])
    assert scopes["sin"] == {"model.model", "x.0"}


def test_closure_and_new_modules_are_called_by_their_class():
    model = Model()
    assert found(lambda x: model(x), X)["sin"] == {
        "Model.blocks.0",
        "Model.blocks.1",
        "Model.named.a",
    }
    assert found(lambda x: Layer()(x), X)["sin"] == {"Layer"}
    graphdef, state = nnx.split(model)
    assert found(lambda s, x: nnx.merge(graphdef, s)(x), state, X)["tanh"] == {"Model.encode"}


def test_plain_jax_names_modules_too():
    model = Model()
    traced = jax.jit(lambda model, x: jax.grad(lambda m: m(x).sum())(model)).trace(model, X)
    text = str({scope for name, scope in scopes_of(traced.jaxpr.jaxpr) if name == "cos"})
    assert "Model.blocks.1" in text and "Model.named.a" in text


def test_methods_and_callables_that_are_transformed_are_called_by_their_class():
    model = Model()
    for function in (model, model.__call__, lambda x: model(x)):
        scopes = {scope for name, scope in scopes_of(nnx.jit(function).trace(X).jaxpr.jaxpr)}
        assert any(scope.endswith("Model.blocks.1") for scope in scopes)
        assert any(scope.endswith("Model.encode") for scope in scopes)

    class Other(nnx.Module):
        def __init__(this):  # noqa: N805
            this.layer = Layer()

        def __call__(this, x):  # noqa: N805
            return this.layer(x)

    other = Other()
    for function in (other, other.__call__):
        scopes = {scope for name, scope in scopes_of(nnx.jit(function).trace(X).jaxpr.jaxpr)}
        assert any(scope.endswith("Other.layer") for scope in scopes)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return jnp.sin(self.linear(x))


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_all_blocks_of_a_stack_are_one_path(remat, backward):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.stack = nnx.Stack(Block, 4, rngs=rngs, remat=remat)

        def __call__(self, x):
            return self.stack(x)

    net = Net(nnx.Rngs(0))
    if backward:
        scopes = found(lambda net, x: nnx.grad(lambda net: net(x).sum())(net), net, X)
        assert scopes["cos"] == {"net.stack.blocks[*]"}
    else:
        scopes = found(lambda net, x: net(x), net, X)
    assert scopes["sin"] == {"net.stack.blocks[*]"}
    assert scopes["dot_general"] == {"net.stack.blocks[*].linear"}


class JittedBlock(nnx.Module):
    def __init__(self):
        self.inner = Layer()

    @nnx.jit
    def __call__(self, x):
        return jnp.cos(self.inner(x))

    @nnx.jit
    def encode(this, x):  # noqa: N805 (whatever it is called)
        return jnp.tan(this.inner(x))


class JittedOuter(nnx.Module):
    def __init__(self):
        self.below = {"a": JittedBlock()}

    @nnx.jit
    def __call__(self, x):
        return self.below["a"](x) + self.below["a"].encode(x)


class OfJitted(nnx.Module):
    def __init__(self):
        self.blocks = [JittedBlock(), JittedBlock(), JittedOuter()]

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def names_of(text, operation):
    """The joined path of each scope with an operation, in the text of a compiled program."""
    scopes = re.findall(rf'op_name="([^"]*)/{operation}"', text)
    return {innermost(scope, lambda name: name.startswith("model")) for scope in scopes}


def test_a_jitted_method_goes_on_from_the_path_of_its_object():
    model = OfJitted()
    call = JittedBlock.__dict__["__call__"]
    before = call.traces.count
    step = nnx.jit(lambda model, x: nnx.grad(lambda model: model(x).sum())(model))
    text = step.lower(model, X).compile().as_text()
    assert call.traces.count == before + 1  # one for all three that call it
    blocks = {"model.blocks.0", "model.blocks.1", "model.blocks.2.below.a"}
    assert names_of(text, "sin") >= blocks | {f"{block}.inner" for block in blocks}
    assert names_of(text, "tan") == {"model.blocks.2.below.a.encode"}
    assert "model.blocks.2.below.a.inner" in names_of(text, "sin")
    assert not re.search(r'op_name="[^"]*(JittedBlock|JittedOuter)', text)
    # ... and by itself it has a name of its own, in a trace of its own.
    alone = JittedBlock()
    text = call.lower(alone, X).compile().as_text()
    assert '"jit(__call__)/JittedBlock.inner/sin"' in text
    assert "called by a Module inside of a trace: True → False" in call.explain()
    alone(X), alone(X), model(X), step(model, X), step(model, X)
    assert call.traces.count == before + 2


def test_a_fault_in_a_jitted_method_has_its_whole_path():
    class Faulty(nnx.Module):
        def __call__(self, x):
            return jnp.log(x - 9)

    model = OfJitted()
    model.blocks[2].below["a"].inner = Faulty()
    report = nnx.find_nonfinite(nnx.jit(lambda model, x: model(x)), model, X)
    assert (report.operation, report.path) == ("log", "model.blocks.2.below.a.inner")
    assert report.method == "Faulty.__call__"
    table = nnx.profile_table(lambda model, x: model(x), model, X, measure_time=False)
    assert {"model.blocks.1.inner", "model.blocks.2.below.a.inner"} <= {r.path for r in table.rows}


# -- kinds of classes and methods -----------------------------------------------------------------


class Mixin:
    def __call__(self, x):
        return jnp.sin(x)


class Mixed(Mixin, nnx.Module):
    pass


class LaterMixin(Mixin):
    def __call__(self, x):
        return jnp.cos(x)


class MixedAgain(Mixed, LaterMixin):
    pass


class Super(Layer):
    def __call__(self, x):
        return super().__call__(x)


@nnx.dataclass
class AsDataclass(nnx.Module):
    factor: float = 2.0

    def __call__(self, x):
        return jnp.sin(self.factor * x)


class Parametrized(nnx.Module, Generic[T]):
    def __call__(self, x: T) -> T:
        return jnp.sin(x)


class Abstract(nnx.Module, abc.ABC):
    @abc.abstractmethod
    def __call__(self, x): ...


class Concrete(Abstract):
    def __call__(self, x):
        return jnp.sin(x)


class AsProperty(nnx.Module):
    def __init__(self):
        self.layer = Layer()

    @property
    def apply(self):
        return self.layer


class Assigned(nnx.Module):
    def forward(self, x):
        return jnp.sin(x)

    __call__ = forward


class Decorated(nnx.Module):
    @functools.partial(jax.named_call, name="inner")
    def __call__(self, x):
        return jnp.sin(x)


class Jitted(nnx.Module):
    @nnx.jit
    def __call__(self, x):
        return jnp.sin(x)


class Rematted(nnx.Module):
    @nnx.remat
    def __call__(self, x):
        return jnp.sin(x)


class Vmapped(nnx.Module):
    @nnx.vmap(in_axes=(None, 0))
    def __call__(self, x):
        return jnp.sin(x)


class Private(nnx.Module):
    def _inner(self, x):
        return jnp.sin(x)

    def __call__(self, x):
        return self._inner(x)


class Static(nnx.Module):
    @staticmethod
    def __call__(x):
        return jnp.sin(x)

    @classmethod
    def made(cls):
        return cls()


KINDS = [Mixed, Super, AsDataclass, Parametrized[float], Concrete, Assigned, Decorated]
KINDS += [Jitted, Rematted, Vmapped, Private]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: getattr(k, "__name__", str(k)))
def test_every_kind_of_class_is_named_once(kind):
    jaxpr = nnx.jit(lambda model, x: model(x)).trace(kind(), X).jaxpr.jaxpr
    (scope,) = {scope for name, scope in scopes_of(jaxpr) if name == "sin"}
    assert re.search(r"\b(model|Jitted)\b", scope), scope
    assert len(re.findall(r"\bmodel\b", scope)) <= (2 if kind in (Rematted, Vmapped) else 1)


def test_what_is_no_method_of_objects_works_as_before():
    assert nnx.jit(lambda m, x: m(x))(Static.made(), X).shape == (3,)
    assert found(lambda model, x: model.apply(x), AsProperty(), X)["sin"] == {"model.layer"}
    model = MixedAgain()  # the order of bases is as without Module in between
    assert "cos" in found(lambda m, x: m(x), model, X)
    with pytest.raises(TypeError, match="abstract"):
        Abstract()


def test_a_wrapped_method_looks_like_the_method():
    class Documented(nnx.Module):
        def encode(self, x: int, *, scale: float = 2.0) -> str:
            """Encodes."""
            return str(x * scale)

    method = Documented.encode
    assert method.__doc__ == "Encodes." and method.__name__ == "encode"
    assert list(inspect.signature(method).parameters) == ["self", "x", "scale"]
    assert list(inspect.signature(Documented().encode).parameters) == ["x", "scale"]
    assert inspect.get_annotations(method) == {"x": int, "scale": float, "return": str}
    assert "Encodes" in inspect.getsource(method)
    assert inspect.isfunction(method)
    model = pickle.loads(pickle.dumps(Model()))
    assert pickle.loads(pickle.dumps(model.encode))(X).shape == (3,)
    assert copy.deepcopy(model)(X).shape == (3,)


def test_a_dataclass_with_slots_and_subclasses_of_it_is_wrapped_once():
    @dataclasses.dataclass
    class Plain(nnx.Module):
        factor: float = 2.0

        def __call__(self, x):
            return jnp.sin(x)

    class Below(Plain):
        pass

    assert found(lambda model, x: model(x), Below(), X)["sin"] == {"model"}
    assert not hasattr(Below.__call__.__wrapped__, "__wrapped__")


# -- what runs ------------------------------------------------------------------------------------


def test_running_says_which_method_runs_where():
    class Asks(nnx.Module):
        def ask(self):
            seen.append(tuple(r.name for r in running()))

    class Holder(nnx.Module):
        def __init__(self):
            self.asks = [Asks()]

        def __call__(self):
            self.asks[0].ask()

    seen = []
    holder = Holder()
    holder()
    nnx.jit(lambda holder: holder())(holder)
    assert seen == [(), ("holder", "holder.asks.0.ask")]
    assert running() == ()


def test_watching_tells_of_every_public_method_with_its_path():
    events = []

    def before(run, args, kwargs):
        events.append(("before", run.path, run.method, len(args)))

    def after(run, output):
        events.append(("after", run.path, run.method, output.shape))

    model = Model()
    with watching(before, after):
        model(X)
    root = ("Model",)
    assert [event[:3] for event in events[:3]] == [
        ("before", root, "__call__"),
        ("before", root, "encode"),
        ("before", (*root, "blocks", 0), "__call__"),
    ]
    assert events[-1] == ("after", root, "__call__", (3,))
    assert len(events) == 10
    events.clear()
    with watching(before), nnx.use_scopes(False):
        nnx.jit(lambda net, x: net(x))(model, X)
    assert ("before", ("net", "named", "a"), "__call__", 1) in events
    model(X)
    assert len(events) == 5


def test_an_error_inside_leaves_nothing_running():
    class Fails(nnx.Module):
        def __call__(self, x):
            raise KeyError("here")

    for _ in range(2):
        with pytest.raises(KeyError, match="here"):
            nnx.jit(lambda m, x: m(x))(Fails(), X)
    assert running() == ()
    assert found(lambda model, x: model(x), Layer(), X)["sin"] == {"model"}


class Recursive(nnx.Module):
    """Every way in which a method may end, or not end."""

    def __init__(self):
        self.layers = [Layer(), Layer()]
        self.tied = self.layers[0]

    def __call__(self, x, fault=None):
        x = self.tied(x)
        if fault is not None:
            self.fail(fault)
        return x

    def fail(self, fault):
        raise fault

    def each(self, x):
        for layer in self.layers:
            x = layer(x)
            yield x

    async def wait(self, x):
        return self.layers[1](x)

    def deep(self, x, n):
        return jnp.sin(x) if n == 0 else self.layers[0](self.deep(x, n - 1))

    def within(self, x):
        return nnx.jit(lambda model, x: model(x))(self, x)


FAULTS = [KeyError("k"), KeyboardInterrupt(), SystemExit(1), StopIteration(), GeneratorExit()]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_nothing_is_left_of_what_was_interrupted(fault):
    model = Recursive()
    for function in (
        lambda model, x: model(x, fault),
        lambda model, x: nnx.vmap(lambda m, x: m(x, fault), in_axes=(None, 0))(model, x),
        lambda model, x: nnx.remat(lambda m, x: m(x, fault))(model, x),
        lambda model, x: nnx.jit(lambda m, x: m(x, fault))(model, x),
    ):
        with pytest.raises((type(fault), RuntimeError)):
            nnx.jit(function)(model, X)
        with pytest.raises((type(fault), RuntimeError)), watching(lambda *_: None):
            model(X, fault)
        with pytest.raises((type(fault), RuntimeError)):
            nnx.find_nonfinite(function, model, X)
        assert running() == () and scopes_module._WATCHERS.items == []
        assert scopes_module._quiet is scopes_module.OUTSIDE
    assert found(lambda model, x: model(x), model, X)["sin"] == {"model.layers.0"}


def test_generators_coroutines_recursion_and_tied_modules():
    model = Recursive()
    assert found(lambda model, x: list(model.each(x)), model, X)["sin"] == {
        "model.layers.0",
        "model.layers.1",
    }

    def halfway(model, x):  # a generator that is left open
        return next(model.each(x)) + next(iter(model.each(x)))

    assert found(halfway, model, X)["sin"] == {"model.layers.0"}
    assert found(lambda model, x: asyncio.run(model.wait(x)), model, X)["sin"] == {"model.layers.1"}
    assert found(lambda model, x: model.deep(x, 3), model, X)["sin"] == {
        "model.deep",
        "model.layers.0",
    }
    assert found(lambda model, x: model.within(x), model, X)["sin"] == {"model.layers.0"}
    assert running() == ()


def test_threads_have_scopes_of_their_own():
    model, names = Recursive(), {}

    def trace(name):
        space = {}
        exec(f"def f({name}, x): return {name}(x)", space)
        names[name] = found(space["f"], model, X)["sin"]

    threads = [threading.Thread(target=trace, args=(f"m{i}",)) for i in range(6)]
    with watching(lambda *_: None):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert names == {f"m{i}": {f"m{i}.layers.0"} for i in range(6)}


def test_odd_names():
    class Odd(nnx.Module):
        def __init__(self):
            setattr(self, "a/b", Layer())
            self.größe = nnx.Dict({"x.y": Layer(), "(z)": Layer(), '"q"': Layer()})

        def __call__(self, x):
            for layer in (getattr(self, "a/b"), *vars(self.größe).values()):
                x = layer(x)
            return x

    odd = Odd()
    text = nnx.jit(lambda model, x: model(x)).lower(odd, X).compile().as_text()
    assert "größe" in text or "gr\\" in text
    table = nnx.profile_table(lambda model, x: model(x), odd, X, measure_time=False)
    assert table.total.parameters == 4 and len(str(table).splitlines()) > 4
    vars(odd.größe)["(z)"].w[...] = jnp.nan
    assert "(z)" in nnx.find_nonfinite(lambda model, x: model(x), odd, X).path


# -- what it costs --------------------------------------------------------------------------------


def stripped(compiled):
    """The text of a compiled program without metadata and the table of its source places."""
    text = re.sub(r", metadata=\{[^}]*\}", "", compiled.as_text())
    tables = r"^(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*\n?"
    return re.sub(tables, "", text, flags=re.M)


def test_the_program_is_the_same_but_for_metadata():
    net = Model()
    optimizer = nnx.Optimizer(net, optax.adam(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer, x):
        optimizer.update(net, nnx.grad(lambda net: net(x).sum())(net))

    # Where there is a cache on disk, neither is to be found in place of the other.
    own, other = ({"xla_embed_ir_in_executable": value} for value in (True, False))
    compiled = step.lower(net, optimizer, X).compile(own)
    with nnx.use_scopes(False):
        without = step.lower(net, optimizer, X).compile(other)
    assert "net.encode" in compiled.as_text() and "net.encode" not in without.as_text()
    assert stripped(compiled) == stripped(without)


PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
import jax, jax.numpy as jnp
from refax import nnx
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
class Layer(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.array(0.5))
    def __call__(self, x):
        return jnp.sin(self.w * x)
if sys.argv[2] == "off":
    nnx.use_scopes(False)
nnx.jit(lambda model, x: model(x))(Layer(), jnp.ones(3))
"""


def test_the_cache_on_disk_is_hit_by_other_processes(tmp_path):
    hits = []
    for switch in ("on", "on", "off"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path), switch],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        hits.append("cache hit for 'jit__lambda" in done.stderr)
    assert hits == [False, True, True]


def test_errors_and_places_of_operations_show_no_frames_of_the_scopes():
    class Fails(nnx.Module):
        def __call__(self, x):
            return jnp.dot(x, jnp.ones(7))

    class Holds(nnx.Module):
        def __init__(self):
            self.fails = Fails()

        def __call__(self, x):
            return self.fails(x)

    with pytest.raises(TypeError) as caught:
        nnx.jit(lambda model, x: model(x))(Holds(), X)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert not [frame for frame in frames if frame.filename.endswith("verbs/scopes.py")]
    assert [frame.name for frame in frames].count("__call__") >= 2
    text = nnx.jit(lambda model, x: model(x)).lower(Model(), X).as_text(debug_info=True)
    assert "verbs/scopes.py" not in text


def test_results_are_named_by_path_in_the_lowered_text():
    class Grows(nnx.Module):
        def __init__(self):
            self.blocks = [nnx.Linear(2, 2, rngs=nnx.Rngs(0))]
            self.mean = nnx.BatchStat(jnp.zeros(2))

    def step(model, x):
        model.mean += x
        model.blocks[0].kernel *= 2.0
        model.new = nnx.Param(x)
        return {"loss": x.sum(), "rest": (x,)}

    written = ["model.mean", "model.new", "model.blocks[0].kernel"]
    for options, given in (({}, []), ({"donate_argnums": 0}, ["model.blocks[0].bias"])):
        text = nnx.jit(step, **options).lower(Grows(), jnp.ones(2)).as_text()
        names = re.findall(r'jax\.result_info = "(.*?)"', text)
        assert names[:2] == ["result.loss", "result.rest[0]"]
        assert sorted(names[2:]) == sorted(written + given)
