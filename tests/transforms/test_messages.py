"""Messages of JAX and XLA about an argument speak of the caller's arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from refax import nnx

X = jnp.ones((2, 3))
OURS = ("grouped", "tree[", "kept[", "given[", "carry[", "refax/lift", "refax/transforms")


def make_model(n: int = 3):
    return nnx.Sequential(nnx.Linear(3, n, use_bias=False, rngs=nnx.Rngs(0)))


def message_of(call) -> str:
    with pytest.raises(Exception) as caught:
        call()
    text = str(caught.value)
    assert not any(word in text for word in OURS), text
    return text


def apply(model, x):
    return model(x)


def decides(model, x):
    return x if model.layers[0].kernel.value.sum() > 0 else model(x)


def by_number(model, x):
    return x * int(x[0, 0])


def to_numpy(model, x):
    return np.asarray(model.layers[0].kernel) + x


def of_several(model, x):
    """JAX lists what the number depends on: "the values of the arguments …, …, and …"."""
    return x * float((model(x) * x.sum()).sum())


TRACING = {
    "jit": lambda f: nnx.jit(f)(make_model(), X),
    "jit of grad": lambda f: nnx.jit(
        lambda model, x: nnx.grad(lambda m, x: f(m, x).sum())(model, x)
    )(make_model(), X),
    "remat": lambda f: nnx.remat(f)(make_model(), X),
    "cond": lambda f: nnx.cond(True, f, lambda model, x: x, make_model(), X),
    "switch": lambda f: nnx.switch(0, [f, f], make_model(), X),
    "fori_loop": lambda f: nnx.fori_loop(
        0, 2, lambda i, value: (value[0], f(*value)), (make_model(), X)
    ),
    "while_loop": lambda f: nnx.while_loop(
        lambda value: value[1].sum() > 100, lambda value: (value[0], f(*value)), (make_model(), X)
    ),
    "eval_shape": lambda f: nnx.eval_shape(f, make_model(), X),
    "make_jaxpr": lambda f: nnx.make_jaxpr(f)(make_model(), X),
    "checkify": lambda f: nnx.checkify(f)(make_model(), X),
    "scan": lambda f: nnx.scan(
        lambda model, c, x: (c, f(model, x)), in_axes=(None, nnx.Carry, 0), out_axes=(nnx.Carry, 0)
    )(make_model(), 0.0, X[None]),
}


@pytest.mark.parametrize("transform", TRACING.values(), ids=TRACING.keys())
@pytest.mark.parametrize("function", [decides, by_number, to_numpy])
def test_a_value_that_is_wanted_while_tracing(transform, function):
    text = message_of(lambda: transform(function))
    place = "x" if function is by_number else "layers[0].kernel"
    if "depends on the value of the argument" in text:
        assert text.rstrip().partition("\n\n")[0].find(place) > 0


@pytest.mark.parametrize("transform", TRACING.values(), ids=TRACING.keys())
def test_all_the_arguments_of_a_list_are_named(transform):
    text = message_of(lambda: transform(of_several))
    listed = text.partition("the values of the arguments ")[2].partition("\n")[0]
    assert not listed or "layers[0].kernel" in listed
    assert not listed or listed.endswith(("and x.", "and value[1]."))


def test_the_traced_function_is_the_callers():
    text = message_of(lambda: nnx.jit(decides)(make_model(), X))
    line = decides.__code__.co_firstlineno
    assert f"the function `decides` ({__file__}:{line}) for jit" in text
    assert "the value of the argument model.layers[0].kernel." in text
    text = message_of(lambda: nnx.jit(of_several)(make_model(), X))
    assert "the values of the arguments model.layers[0].kernel and x." in text


def test_devices():
    model = make_model()
    devices = jax.devices()
    kernel = model.layers[0].kernel
    kernel.value = jax.device_put(kernel.value, devices[1])
    text = message_of(lambda: nnx.jit(apply)(model, jax.device_put(X, devices[2])))
    assert "What `apply`" in text and "Cure:" in text
    assert "model.layers[0].kernel" in text and "`x`" in text, text


@pytest.mark.parametrize("transform", [nnx.jit, nnx.remat, nnx.grad, nnx.vmap])
def test_abstract_arrays(transform):
    model = nnx.eval_shape(make_model)
    options = {"in_axes": (None, 0)} if transform is nnx.vmap else {}
    text = message_of(lambda: transform(apply, **options)(model, X))
    assert "`model.layers[0].kernel` (float32[3,3]) is abstract" in text and "Cure: " in text


def test_a_compiled_function_called_with_other_shapes():
    compiled = nnx.jit(apply).lower(make_model(), X).compile()
    text = message_of(lambda: compiled(make_model(), X[:1]))
    assert "Argument 'x' compiled with float32[2,3] and called with float32[1,3]" in text
    text = message_of(lambda: compiled(make_model(5), X))
    assert "Argument 'model.layers[0].kernel' compiled with float32[3,3]" in text


def give(model, target, x):
    kernel = model.layers[0].kernel
    kernel.value = kernel.value + target.layers[0].kernel.value + x


@pytest.mark.parametrize(
    "options", [{"donate_argnums": 0}, {"donate_argnums": (0, 1)}, {"donate_argnames": "model"}]
)
def test_a_buffer_that_is_donated_and_used(options):
    model = make_model()
    target = nnx.clone(model)
    text = message_of(lambda: nnx.jit(give, **options)(model=model, target=target, x=1.0)
                      if "donate_argnames" in options
                      else nnx.jit(give, **options)(model, target, 1.0))  # fmt: skip
    first = (
        "`model.layers[0].kernel` is donated, but `target.layers[0].kernel` holds the same array"
    )
    assert text.startswith(first) and "copy.deepcopy" in text
    x = model.layers[0].kernel.value
    text = message_of(lambda: nnx.jit(give, donate_argnums=2)(model, make_model(), x))
    assert text.startswith("`x` is donated, but `model.layers[0].kernel` holds the same array")


def test_shardings_that_do_not_fit():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    of_objects = nnx.StateSharding({...: rows})
    text = message_of(lambda: nnx.jit(apply, in_shardings=(of_objects, None))(make_model(), X))
    assert text.startswith("jit: `model.layers[0].kernel` (float32[3,3]) cannot have the sharding")
    text = message_of(lambda: nnx.jit(apply, in_shardings=(None, rows))(make_model(), X))
    assert text.startswith("jit: `x` (float32[2,3]) cannot have the sharding")


def test_numbers_too_large():
    text = message_of(lambda: nnx.jit(apply)(make_model(), 2**100))
    assert "whose argument path is x." in text


def test_what_is_no_array():
    for transform in (nnx.jit, nnx.remat):
        text = message_of(lambda transform=transform: transform(apply)(make_model(), object()))
        assert text.startswith("`x` holds object, which cannot be traced")


def test_an_error_of_the_caller_stays_as_it_is():
    def raises(model, x):
        raise ValueError("grouped[0][0] is a text of mine", 3)

    for transform in (nnx.jit, nnx.remat):
        with pytest.raises(ValueError) as caught:
            transform(raises)(make_model(), X)
        assert caught.value.args == ("grouped[0][0] is a text of mine", 3)


OPTIONS = [
    *[(nnx.jit, "static_argnum", "static_argnums"), (nnx.jit, "inlin", "inline")],
    *[(nnx.vmap, "in_axis", "in_axes"), (nnx.pmap, "axis", "axis_size")],
    *[(nnx.scan, "lenght", "length"), (nnx.shard_map, "in_spec", "in_specs")],
    *[(nnx.shard_map, "check_vm", "check_vma"), (nnx.grad, "argnum", "argnums")],
    *[(nnx.value_and_grad, "has_au", "has_aux"), (nnx.custom_vjp, "nondiff", "nondiff_argnums")],
    *[(nnx.remat, "polcy", "policy"), (nnx.checkify, "error", "errors")],
    (nnx.make_jaxpr, "return_shapes", "return_shape"),
]


@pytest.mark.parametrize(("transform", "wrong", "right"), OPTIONS)
def test_a_misspelt_option_is_told_where_it_stands(transform, wrong, right):
    for use in (lambda: transform(apply, **{wrong: 0}), lambda: transform(**{wrong: 0})):
        with pytest.raises(TypeError, match=f"argument '{wrong}'. Did you mean '{right}'"):
            use()
