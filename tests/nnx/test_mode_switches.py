"""The keywords by which programs choose a mode: accepted everywhere, and never taken for more."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from refax import nnx

X = jnp.ones((1, 2))
VALUES = (True, False, None)


class Net(nnx.Module):
    """Reads a Param, counts its calls; refuses every keyword that is not its own."""

    def __init__(self, rngs=None):
        self.w = nnx.Param(jnp.arange(2.0) + 1)
        self.calls = nnx.BatchStat(jnp.array(0.0))

    def __call__(self, x, *rest, scale=1.0):
        self.calls += 1
        return (self.w * x * scale).sum()


def body(net, x, *rest):
    return net(x)


def loop(i, net):
    net.calls += 1
    return net


def ruled(net, x):
    return net(x)


def custom(**switch):
    f = nnx.custom_vjp(ruled, **switch)
    f.defvjp(lambda n, x: (f(n, x), x), lambda x, g: (nnx.State({"w": x[0] * g[1]}), x * g[1]))
    return f


def over_streams(net, **switch):
    rngs = nnx.Rngs(0, dropout=1)
    nnx.restore_rngs(nnx.split_rngs(rngs, splits=2, **switch))
    nnx.restore_rngs(nnx.fork_rngs(rngs, **switch))
    nnx.reseed(rngs, dropout=3, graph=switch.get("graph"))
    return nnx.state(rngs)


# name → a call of it on a Net, with switches; what it returns is compared.
TAKERS = {
    "EMA": lambda n, **s: nnx.state(nnx.EMA(n, 0.9, **s)),
    "Optimizer": lambda n, **s: nnx.state(nnx.Optimizer(n, optax.adam(0.1), wrt=nnx.Param, **s)),
    "abstract_with_sharding": lambda n, **s: nnx.abstract_with_sharding(n, **s),
    "as_abstract": lambda n, **s: nnx.as_abstract(n, **s),
    "backup_keys": lambda n, **s: [k for _, k, _ in nnx.backup_keys(nnx.Rngs(0), **s)],
    "cached_partial": lambda n, **s: nnx.cached_partial(nnx.jit(body), n, **s)(X),
    "checkpoint": lambda n, **s: nnx.checkpoint(body, **s)(n, X),
    "checkify": lambda n, **s: nnx.checkify(body, **s)(n, X)[1],
    "clone": lambda n, **s: nnx.state(nnx.clone(n, **s)),
    "cond": lambda n, **s: nnx.cond(True, body, lambda n, x: x.sum(), n, X, **s),
    "custom_vjp": lambda n, **s: nnx.grad(custom(**s))(n, X),
    "eval_shape": lambda n, **s: nnx.eval_shape(Net.__call__, n, X, scale=2.0, **s).shape,
    "flatten": lambda n, **s: nnx.flatten(n, **s)[0],
    "fori_loop": lambda n, **s: nnx.state(nnx.fori_loop(0, 3, loop, n, **s)),
    "fork_rngs": over_streams,
    "get_abstract_model": lambda n, **s: nnx.get_abstract_model(Net, None, **s)[0],
    "grad": lambda n, **s: nnx.grad(body, **s)(n, X),
    "graphdef": lambda n, **s: nnx.graphdef(n, **s),
    "iter_children": lambda n, **s: [k for k, _ in nnx.iter_children(nnx.Sequential(n), **s)],
    "iter_graph": lambda n, **s: [path for path, _ in nnx.iter_graph(n, **s)],
    "iter_module_children": lambda n, **s: list(nnx.iter_module_children(n, **s)),
    "iter_modules": lambda n, **s: [path for path, _ in nnx.iter_modules(n, **s)],
    "jit": lambda n, **s: nnx.jit(body, **s)(n, X),
    "jit_partial": lambda n, **s: nnx.jit_partial(body, n, **s)(X),
    "jvp": lambda n, **s: nnx.jvp(body, (n, X), (nnx.state(n, nnx.Param), X), **s),
    "make_jaxpr": lambda n, **s: str(nnx.make_jaxpr(body, **s)(n, X)),
    "map": lambda n, **s: nnx.state(nnx.map(lambda _, x: x * 2, n, **s)),
    "pmap": lambda n, **s: nnx.pmap(body, in_axes=(None, 0), out_axes=0, **s)(n, X),
    "prefix": lambda n, **s: nnx.prefix(n, {nnx.Param: 0, ...: None}, **s),
    "pop": lambda n, **s: nnx.pop(n, nnx.BatchStat, **s),
    "recursive_map": lambda n, **s: nnx.state(nnx.recursive_map(lambda _, x: x, n, **s)),
    "remat": lambda n, **s: nnx.remat(body, **s)(n, X),
    "reseed": over_streams,
    "scan": lambda n, **s: nnx.scan(
        body, in_axes=(nnx.StateAxes({...: nnx.Carry}), 0), out_axes=0, **s
    ),
    "set_attributes": lambda n, **s: n.set_attributes(calls=n.calls, **s),
    "shard_map": lambda n, **s: nnx.shard_map(
        body, mesh=jax.make_mesh((1,), ("x",)), in_specs=(P(), P()), out_specs=P(), **s
    ),
    "split": lambda n, **s: nnx.split(n, nnx.Param, ..., **s)[1:],
    "split_rngs": over_streams,
    "state": lambda n, **s: nnx.state(n, nnx.Param, **s),
    "switch": lambda n, **s: nnx.switch(0, [body, body], n, X, **s),
    "train": lambda n, **s: n.train(**s),
    "eval": lambda n, **s: n.eval(**s),
    "transform_metadata": lambda n, **s: nnx.transform_metadata(
        body, in_axes=None, out_axes=None, partition="x", **s
    )(n, X),
    "unpack": lambda n, **s: nnx.unpack(n, nnx.Param, ..., **s),
    "value_and_grad": lambda n, **s: nnx.value_and_grad(body, **s)(n, X),
    "variables": lambda n, **s: nnx.variables(n, nnx.Param, **s),
    "vjp": lambda n, **s: nnx.vjp(body, n, X, **s)[1](1.0),
    "vmap": lambda n, **s: nnx.vmap(body, in_axes=(None, 0), **s),
    "view": lambda n, **s: nnx.view(nnx.Dropout(0.5), deterministic=True, **s).deterministic,
    "view_info": lambda n, **s: nnx.view_info(nnx.Dropout(0.5), **s),
    "with_attributes": lambda n, **s: nnx.state(nnx.with_attributes(n, w=n.w, **s)),
    "with_rngs": lambda n, **s: nnx.state(nnx.with_rngs(nnx.Rngs(0), split=2, **s)),
    "while_loop": lambda n, **s: nnx.state(
        nnx.while_loop(lambda n: n.calls < 3, lambda n: loop(0, n), n, **s)
    ),
}


def outcome(name, **switch):
    net = Net()
    result = TAKERS[name](net, **switch)
    if name == "scan":
        result = result(net, jnp.ones((3, 2)))
    elif name == "shard_map":
        result = result(net, X)
    elif name == "vmap":
        result = nnx.vmap(lambda x: x + 1, **switch)(X)
    return [repr(result), sorted(vars(net)), nnx.to_pure_dict(nnx.state(net))]


@pytest.mark.parametrize("name", TAKERS)
def test_switches_are_accepted_and_change_nothing(name):
    plain = outcome(name)
    keys = ("graph",) if name not in WITH_UPDATES else ("graph", "graph_updates")
    for values in itertools.product(VALUES, repeat=len(keys)):
        given = outcome(name, **dict(zip(keys, values, strict=True)))
        assert given[:2] == plain[:2]
        jax.tree.map(np.testing.assert_array_equal, given[2], plain[2])


WITH_UPDATES = """
    cached_partial checkify checkpoint cond custom_vjp eval_shape fori_loop fork_rngs grad jit
    jit_partial jvp make_jaxpr pmap remat scan shard_map split_rngs switch transform_metadata
    value_and_grad vjp vmap while_loop with_rngs
""".split()


def test_what_is_shared_is_shared_in_every_mode():
    class Tied(nnx.Module):
        def __init__(self):
            self.a = nnx.Param(jnp.array(1.0))
            self.b = self.a

    def step(m):
        m.a += 1.0
        return m.a + m.b

    for graph, updates in itertools.product(VALUES, VALUES):
        tied = Tied()
        assert float(nnx.jit(step, graph=graph, graph_updates=updates)(tied)) == 4.0
        assert tied.a is tied.b and float(tied.b) == 2.0
        assert set(nnx.state(tied, graph=graph)) == {"a"}


@pytest.mark.parametrize("decorate", [nnx.jit, nnx.remat, nnx.vmap, nnx.grad, nnx.checkify])
def test_a_decorator_keeps_them_to_itself(decorate):
    @decorate(graph=True, graph_updates=False)
    def f(x):
        return (x * x).sum()

    f(jnp.ones(3))


# -- Variables -------------------------------------------------------------------------------------

TYPES = [nnx.Variable, nnx.Param, nnx.BatchStat, nnx.Cache, nnx.Intermediate, nnx.Perturbation,
         nnx.RngState, nnx.RngKey, nnx.RngCount, nnx.OptState, nnx.OptArray, nnx.OptVariable,
         nnx.LoRAParam, nnx.metrics.MetricState]  # fmt: skip
ACCEPTED = [
    *itertools.product(("hijax", "is_hijax", "ref", "use_ref", "has_ref"), (False, None)),
    *itertools.product(("mutable", "is_mutable"), (True, None)),
    *itertools.product(("eager_sharding",), VALUES),
]
REFUSED = [
    *itertools.product(("hijax", "is_hijax", "ref", "use_ref", "has_ref"), (True,)),
    *itertools.product(("mutable", "is_mutable"), (False,)),
]


@pytest.mark.parametrize("cls", TYPES)
def test_a_variable_takes_no_switch_for_metadata(cls):
    for name, value in ACCEPTED:
        made = cls(jnp.ones(2), tag="kept", **{name: value})
        assert made.get_metadata() == {"tag": "kept"}
        assert nnx.graphdef(made) == nnx.graphdef(cls(jnp.ones(2), tag="kept"))
        assert made.replace(**{name: value}).get_metadata() == {"tag": "kept"}
        made.set_metadata(**{name: value})
        assert made.get_metadata() == {"tag": "kept"}


@pytest.mark.parametrize("cls", TYPES)
def test_a_variable_says_what_it_is(cls):
    v = cls(jnp.ones(2))
    assert not v.hijax and not v.is_hijax and not v.ref and not v.has_ref
    assert v.mutable and v.is_mutable


@pytest.mark.parametrize("name, value", REFUSED)
def test_what_no_variable_is_says_so(name, value):
    switch = {name: value}
    message = rf"{name}={value} asks for Variables that .*\nCure: "
    for cls in TYPES:
        with pytest.raises(ValueError, match=message):
            cls(jnp.ones(2), **switch)
    init = nnx.with_metadata(nnx.initializers.ones, **switch)
    with pytest.raises(ValueError, match=message):
        nnx.Linear(2, 3, kernel_init=init, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=message):
        nnx.Linear(2, 3, kernel_metadata=switch, rngs=nnx.Rngs(0))
    if name in ("hijax", "ref", "mutable"):
        with pytest.raises(ValueError, match=message):
            nnx.vars_as(Net(), **switch)
    if name in ("hijax", "ref"):
        with pytest.raises(ValueError, match=message):
            nnx.var_defaults(**switch)


def test_such_a_name_with_another_value_is_metadata():
    v = nnx.Param(jnp.ones(2), ref="appendix B", graph=(1, 2))
    assert v.ref == "appendix B" and v.graph == (1, 2)


@pytest.mark.parametrize("switch", [n for n, _ in ACCEPTED] + ["graph", "graph_updates"])
def test_rngs_have_no_such_stream(switch):
    value = switch not in ("hijax", "is_hijax", "ref", "use_ref", "has_ref")
    nnx.reseed(nnx.Rngs(0, noise=1), noise=2, **{switch: value})
    assert set(vars(nnx.Rngs(0, noise=1, **{switch: value}))) == {"default", "noise"}
    assert set(vars(nnx.Rngs(0, **{switch: 3}))) == {"default", switch}  # an int is a seed


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("setting", [nnx.set_graph_mode, nnx.set_graph_updates])
def test_settings_are_functions_and_context_managers(setting, value):
    with setting(value):
        net = Net()
        nnx.jit(body)(net, X)
    setting(True)
    assert float(net.calls) == 1


def test_eager_sharding_is_remembered():
    assert nnx.using_eager_sharding()
    with nnx.use_eager_sharding(False):
        assert not nnx.using_eager_sharding()
        with nnx.use_eager_sharding(True):
            assert nnx.using_eager_sharding()
        assert not nnx.using_eager_sharding()
    before = nnx.using_eager_sharding()
    nnx.use_eager_sharding(False)
    assert before and not nnx.using_eager_sharding()
    nnx.use_eager_sharding(True)


def test_defaults_of_variables():
    defaults = nnx.var_defaults(hijax=False)
    assert not defaults.hijax and not defaults["ref"] and dict(defaults) == {**defaults}
    with nnx.var_defaults(hijax=False, ref=False):
        assert not nnx.var_defaults().hijax
    nnx.use_hijax(nnx.using_hijax())
    with nnx.use_refs(False), nnx.use_mutable_arrays(False):
        assert not nnx.using_refs()
    for refused in (nnx.use_hijax, nnx.use_refs):
        with pytest.raises(ValueError, match=r"=True asks .*\nCure: "):
            refused(True)


SAME = "as_array_vars to_arrays as_pytree_vars as_mutable_vars vars_as with_vars freeze".split()


@pytest.mark.parametrize("name", SAME)
def test_variables_as_they_are_anyway_are_copies(name):
    net = Net()
    copy = getattr(nnx, name)(net)
    copy.w.value = copy.w + 1
    assert net.w[0] == 1 and copy.w[0] == 2 and type(copy) is Net
    assert nnx.graphdef(copy) == nnx.graphdef(net)


@pytest.mark.parametrize(
    "name", "as_ref_vars to_refs as_hijax_vars as_immutable_vars immutable mutable".split()
)
def test_variables_as_none_is_are_refused(name):
    with pytest.raises(ValueError, match="Cure: "):
        getattr(nnx, name)(Net())


def test_the_mutable_arrays_of_jax_have_their_older_names():
    ref = nnx.array_ref(jnp.array([1, 2]))

    @jax.jit
    def increment(ref):
        ref[...] += 1

    increment(ref)
    assert ref[...].tolist() == [2, 3]
    assert isinstance(ref, nnx.ArrayRef) and nnx.graph.is_array_ref(ref)
    assert not nnx.graph.is_array_ref(ref[...])


@pytest.mark.parametrize(("switch", "known"), [("graph", TAKERS), ("graph_updates", WITH_UPDATES)])
def test_every_public_taker_is_in_the_table(switch, known):
    def takes(f):
        return callable(f) and switch in inspect.signature(f).parameters

    public = {name: getattr(nnx, name) for name in dir(nnx)}
    taking = {name: f for name, f in public.items() if name[0].islower() and takes(f)}
    functions = {name: getattr(nnx, name) for name in known if hasattr(nnx, name)}
    assert {name for name, f in taking.items() if f not in functions.values()} == set()
    hands_on = {name for name in functions if name[0].islower() and name not in taking}
    assert hands_on == {"jit_partial"}
