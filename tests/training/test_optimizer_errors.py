"""What an optimizer says when it is given the wrong things: each message names the place."""

import re
from typing import Any

import jax
import numpy as np
import optax
import pytest

from refax import nnx

from .common import Net, loss_of


class Other(nnx.Module):
    def __init__(self) -> None:
        self.encoder = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.tail = nnx.Linear(4, 2, rngs=nnx.Rngs(0))


def made() -> tuple[Net, nnx.Optimizer, nnx.State]:
    model = Net()
    return model, nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param), nnx.grad(loss_of)(model)


def params(model: Any) -> nnx.State:
    return nnx.state(model, nnx.Param)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "gradients only": (lambda m, o, g: o.update(g), TypeError, "nnx.ModelAndOptimizer"),
    "nothing": (lambda m, o, g: o.update(m), TypeError, r"optimizer.update\(model, grads\)"),
    "the pair of value_and_grad": (
        lambda m, o, g: o.update(m, nnx.value_and_grad(loss_of)(m)),
        TypeError,
        r"grads is tuple.*\n.*\(loss, grads\)",
    ),
    "swapped": (lambda m, o, g: o.update(g, m), TypeError, "the model comes first"),
    "of another model": (
        lambda m, o, g: o.update(m, params(Other())),
        ValueError,
        r"no gradient for `head.bias` \(and 1 more\) and has a gradient for `tail.bias`",
    ),
    "a part": (
        lambda m, o, g: o.update(m, nnx.filter_state(g, nnx.PathContains("head"))),
        ValueError,
        r"no gradient for `encoder.bias`.*\nCure: .*DiffState",
    ),
    "other shapes": (
        lambda m, o, g: o.update(m, params(Net(hidden=5))),
        ValueError,
        r"`encoder.bias` is float32\[4\], its gradient float32\[5\]",
    ),
    "no transformation": (
        lambda m, o, g: nnx.Optimizer(m, optax.adam, wrt=nnx.Param),
        TypeError,
        r"tx is function.*\nCure: .*optax.adam\(1e-3\)",
    ),
    "nothing to optimize": (
        lambda m, o, g: nnx.Optimizer(m, optax.adam(0.1), wrt=nnx.LoRAParam),
        ValueError,
        r"LoRAParam.* matches nothing in the Net, which has 4 Param",
    ),
    "a model given to one that holds it": (
        lambda m, o, g: nnx.ModelAndOptimizer(m, optax.adam(0.1)).update(m, g),
        TypeError,
        r"optimizer.update\(grads\)",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_message(what: str) -> None:
    call, kind, message = WRONG[what]
    model, optimizer, grads = made()
    before = nnx.to_pure_dict(nnx.state((model, optimizer)))
    with pytest.raises(kind, match=message):
        call(model, optimizer, grads)
    after = nnx.to_pure_dict(nnx.state((model, optimizer)))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def added(model: Net) -> Net:
    setattr(model, "extra", nnx.Linear(2, 2, rngs=nnx.Rngs(0)))  # noqa: B010 - a new attribute
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: Other(), "keeps a state for `head.bias`, which the model does not have"),
        (lambda model: Net(hidden=5), r"keeps \(4,\) for `encoder.bias`, which is \(5,\)"),
        (added, "keeps nothing for `extra.bias`, which the model has"),
    ],
)
def test_an_optimizer_of_another_model(change: Any, message: str) -> None:
    model, optimizer, _ = made()
    other = change(model)
    with pytest.raises((TypeError, ValueError)) as caught:
        optimizer.update(other, params(other))
    assert re.search(message, "\n".join(caught.value.__notes__))


@pytest.mark.parametrize(
    "form",
    [
        lambda grads, model: grads,
        lambda grads, model: nnx.pure(grads),
        lambda grads, model: nnx.to_pure_dict(grads),
        lambda grads, model: nnx.merge(nnx.graphdef(model), grads),
        lambda grads, model: nnx.map_state(lambda path, g: g.replace(tag="old"), grads),
    ],
    ids=["State", "arrays", "pure dict", "Module", "other metadata"],
)
def test_forms_of_gradients(form: Any) -> None:
    expected, optimizer, grads = made()
    optimizer.update(expected, grads)
    model, optimizer, grads = made()
    optimizer.update(model=model, grads=form(grads, model))
    ours, theirs = nnx.to_pure_dict(params(model)), nnx.to_pure_dict(params(expected))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_metadata_may_change_after_the_optimizer_was_made() -> None:
    model, optimizer, grads = made()
    model.encoder.kernel.sharding = ("in", "out")
    optimizer.update(model, grads)
    assert model.encoder.kernel.sharding == ("in", "out")
