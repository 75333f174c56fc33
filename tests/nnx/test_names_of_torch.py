"""Who writes the names of PyTorch is told what is written here, and names of one's own are free."""

import dataclasses
import inspect
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refax import nnx
from refax.objects import torch_names

X = jnp.ones((4, 2))
TABLES = [torch_names.OF_A_MODULE, torch_names.OF_AN_OBJECT, torch_names.OF_A_LAYER,
          torch_names.OF_AN_ARRAY, torch_names.PUBLIC]  # fmt: skip


def linear():
    return nnx.Linear(2, 3, rngs=nnx.Rngs(0))


def optimizer():
    return nnx.Optimizer(linear(), optax.sgd(0.1), wrt=nnx.Param)


def message(call, kind):
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize(
    ("make", "table"),
    [
        (linear, torch_names.OF_AN_OBJECT | torch_names.OF_A_MODULE | torch_names.OF_A_LAYER),
        (optimizer, torch_names.OF_AN_OBJECT),
        (lambda: nnx.Param(X), torch_names.OF_AN_ARRAY),
        (lambda: nnx, torch_names.PUBLIC),
    ],
    ids=["module", "optimizer", "array", "nnx"],
)
def test_a_missing_name_says_what_is_written_here(make, table):
    owner = make()
    for name, cure in table.items():
        if hasattr(owner, name):  # such as nnx.Conv, which is asked for as Conv2d
            name += "2d"
        text = message(lambda name=name: getattr(owner, name), AttributeError)
        assert text.endswith(f"\nCure: {cure}") and repr(name) in text
        assert not hasattr(owner, name)
        assert getattr(owner, name, None) is None


def test_names_in_the_cures_are_there():
    """What a cure says of `nnx`, `optax` or `jax` exists."""
    for cure in (cure for table in TABLES for cure in table.values()):
        for path in re.findall(r"\b((?:nnx|optax|jax|numpy)(?:\.\w+)+)", cure):
            root, *names = path.split(".")
            found = {"nnx": nnx, "optax": optax, "jax": jax, "numpy": np}[root]
            for name in names:
                found = getattr(found, name)
        for name in re.findall(r"\bmodel\.(\w+)\(", cure):
            assert hasattr(nnx.Module, name), cure


@pytest.mark.parametrize(("torch", "here"), torch_names.ARGUMENTS.items())
def test_an_argument_says_its_name_here(torch, here):
    kinds = [kind for kind in (getattr(nnx, name) for name in dir(nnx)) if inspect.isclass(kind)]
    takers = [
        kind
        for kind in kinds
        if issubclass(kind, nnx.Module | nnx.Optimizer)
        and {*here.split(" and ")} <= {*inspect.signature(kind).parameters}
        and "kwargs" not in inspect.signature(kind).parameters
    ]
    assert takers
    for kind in takers:
        if torch not in inspect.signature(kind).parameters:
            text = message(lambda kind=kind: kind(**{torch: 1}), TypeError)
            assert text == (
                f"{kind.__name__}: PyTorch's {torch} is no argument here.\n"
                f"Cure: {here} in the place of {torch}."
            )


def test_one_argument_of_torch_for_two_here():
    for wrong in ("affine", "elementwise_affine"):
        text = message(lambda wrong=wrong: nnx.LayerNorm(4, **{wrong: False}), TypeError)
        assert f"use_bias and use_scale in the place of {wrong}" in text
    assert "unexpected" in message(lambda: nnx.Optimizer(linear(), lr=1e-3), TypeError)


def test_another_unknown_argument_is_told_by_python():
    assert "unexpected keyword argument 'biass'" in message(
        lambda: nnx.Linear(2, 3, biass=False, rngs=nnx.Rngs(0)), TypeError
    )


def test_names_of_ones_own_are_free():
    @nnx.dataclass
    class Fields(nnx.Module):
        weight: nnx.Param
        training: bool
        step: int = 3

    class Own(nnx.Module):
        buffers = "of the class"

        def __init__(self):
            self.parameters = [nnx.Param(X)]
            self.to = nnx.Param(X)

        def forward(self, x):
            return x + self.parameters[0] + self.to

        @property
        def state_dict(self):
            return "mine"

    own = Own()
    assert float(own.forward(0.0)[0, 0]) == 2.0
    assert (own.buffers, own.state_dict) == ("of the class", "mine")
    own.modules = 3
    assert own.modules == 3 and sorted(vars(own)) == ["modules", "parameters", "to"]
    del own.modules
    assert not hasattr(own, "modules")
    assert [f.name for f in dataclasses.fields(Fields)] == ["weight", "training", "step"]
    with pytest.raises(TypeError):
        Fields(nnx.Param(X))  # `training` has no default
    assert Fields(nnx.Param(X), True).step == 3
    assert nnx.Sequential(own.forward)(0.0).shape == (4, 2)
    with pytest.raises(AttributeError, match="'mine'"):
        own.mine  # noqa: B018
    nnx.capture(own.forward, method_outputs=nnx.Intermediate)(0.0)
    assert jax.tree.leaves(nnx.clone(own))[0].shape == (4, 2)


def test_attributes_of_a_later_base_are_there():
    class Mix:
        weight = 7

        def apply(self):
            return "applied"

        @property
        def training(self):
            return "of the base"

        @classmethod
        def modules(cls):
            return cls.__name__

    class Own(nnx.Linear, Mix):
        pass

    own = Own(2, 3, rngs=nnx.Rngs(0))
    assert (own.weight, own.apply(), own.training, own.modules()) == (
        7, "applied", "of the base", "Own"
    )  # fmt: skip
    assert "Cure: nnx.state" in message(lambda: own.parameters, AttributeError)
    own.buffers = nnx.BatchStat(X)
    listed = dir(own)
    assert {"kernel", "weight", "apply", "training", "buffers"} <= {*listed}
    assert not {"parameters", "cuda", "zero_grad"} & {*listed}


def test_an_own_getattr_is_asked():
    class Wrapper(nnx.Module):
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return f"{name} of the inner"

    assert Wrapper(linear()).parameters == "parameters of the inner"


def test_metadata_that_would_have_done_something_is_warned_of():
    param = nnx.Param(X)
    with pytest.warns(UserWarning, match="`requires_grad` becomes metadata.*\nCure: wrt="):
        param.requires_grad = False
    with pytest.warns(UserWarning, match="`data` becomes metadata"):
        param.data = jnp.zeros((4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        param.requires_grad = True  # it is known to be metadata
        nnx.Param(X, requires_grad=False).requires_grad = True
        param.trainable = False
    assert param.get_metadata("requires_grad") is True


def test_a_mode_of_train_is_told():
    model = nnx.Sequential(nnx.Dropout(0.5, rngs=nnx.Rngs(0)), linear())
    model.eval()
    assert "Cure: model.train() or model.eval()" in message(
        lambda: nnx.Sequential.train(model, False),  # pyright: ignore
        TypeError,
    )
    assert model.layers[0].deterministic
    model.train(deterministic=True)
    assert model.layers[0].deterministic


def test_a_called_variable():
    assert "holds no function" in message(lambda: optimizer().step(), TypeError)
    assert nnx.Variable(lambda x: x + 1)(2) == 3


@pytest.mark.parametrize(
    "value", [lambda y: y, lambda y: (y.mean(), y), lambda y: {"loss": y.mean()}, lambda y: None]
)
@pytest.mark.parametrize("transform", [nnx.grad, nnx.value_and_grad])
def test_a_loss_that_is_no_number(transform, value):
    text = message(lambda: transform(lambda m: value(m(X)))(linear()), TypeError)
    assert "scalar-output" in text and "has_aux=True" in text
    assert len(text) < 300


def test_channels_first():
    conv = nnx.Conv(1, 2, (3, 3), rngs=nnx.Rngs(0))
    assert "Cure: channels come last" in message(lambda: conv(jnp.ones((5, 1, 8, 8))), ValueError)
    assert "channels" not in message(lambda: conv(jnp.ones((5, 8, 8, 3))), ValueError)
    assert conv(jnp.moveaxis(jnp.ones((5, 1, 8, 8)), 1, -1)).shape == (5, 8, 8, 2)


LAYERS = {
    "Linear": (lambda r: nnx.Linear(2, 3, rngs=r), X),
    "LinearGeneral": (lambda r: nnx.LinearGeneral(2, 3, rngs=r), X),
    "Conv": (lambda r: nnx.Conv(2, 3, (3,), rngs=r), X),
    "Einsum": (lambda r: nnx.Einsum("ab,bc->ac", (2, 3), (3,), rngs=r), X),
    "Embed": (lambda r: nnx.Embed(5, 2, rngs=r), jnp.array([1, 2])),
    "LayerNorm": (lambda r: nnx.LayerNorm(2, rngs=r), X),
    "BatchNorm": (lambda r: nnx.BatchNorm(2, rngs=r), X),
    "PReLU": (lambda r: nnx.PReLU(), X),
    "LoRA": (lambda r: nnx.LoRA(2, 1, 3, rngs=r), X),
    "MultiHeadAttention": (lambda r: nnx.MultiHeadAttention(1, 2, decode=False, rngs=r), X),
    "GRUCell": (lambda r: nnx.RNN(nnx.GRUCell(2, 3, rngs=r)), X[None]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_array_in_the_place_of_a_parameter_counts(name):
    """A layer computes with it as with the Param that was there; it is not trained."""
    make, x = LAYERS[name]
    layer, other = make(nnx.Rngs(0)), make(nnx.Rngs(0))
    for path, param in list(nnx.to_flat_state(nnx.state(layer, (nnx.Param, nnx.LoRAParam)))):
        owner = nnx.get_path(layer, path[:-1]) if path[:-1] else layer
        setattr(owner, path[-1], 2 * param.value)
        nnx.get_path(other, path).value = 2 * param.value
    assert not nnx.state(layer, (nnx.Param, nnx.LoRAParam))
    np.testing.assert_array_equal(layer(x), other(x))


def test_an_optimizer_says_which_parameter_was_replaced():
    model = nnx.Sequential(linear())
    opt = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    model.layers[0].bias = jnp.zeros(3)
    gradients = nnx.grad(lambda m: m(X).sum())(model)
    with pytest.raises(ValueError) as caught:
        opt.update(model, gradients)
    notes = "\n".join(caught.value.__notes__)
    assert "keeps a state for `layers[0].bias`, which the model does not have" in notes
