"""`update` by names, by every path of a shared Variable, and with Variables that are new."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Block, Dense, Node, chain


class Tied(nnx.Module):
    """Shared Variables, shared modules and a cycle."""

    def __init__(self) -> None:
        self.embed = Dense(3, 3)
        self.head = Dense(3, 3, seed=1)
        self.head.kernel = self.embed.kernel
        self.again = {"a.b": self.embed, 3: [self.head], "x": Node(up=self)}


MODELS = {"block": Block, "tied": Tied, "chain": lambda: chain(4), "list": lambda: [Dense(2, 2)]}


def other_values(model):
    return {name: v.value + 1 for name, v in nnx.named_variables(model)}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_names_round_trip(make):
    model = make()
    values = other_values(model)
    nnx.update(model, values)
    for name, value in values.items():
        assert nnx.get_path(model, name).value is value
    nnx.update(make(), {path_of(name): value for name, value in values.items()})
    nnx.update(model, {name: np.asarray(v.value) for name, v in nnx.named_parameters(model)})


def path_of(name):
    """The name in brackets throughout, `layers[0].kernel`."""
    return name.replace(".0", "[0]").replace(".1", "[1]")


def every_name(model, depth):
    """Every name of at most so many parts that get_path finds a Variable by."""
    found, level = {}, [((), model)]
    for _ in range(depth):
        next_level = []
        for path, value in level:
            if isinstance(value, nnx.Variable):
                found[path] = value
                continue
            items = (
                vars(value).items()
                if isinstance(value, nnx.Module)
                else value.items()
                if isinstance(value, dict)
                else enumerate(value)
                if isinstance(value, list)
                else ()
            )
            next_level += [((*path, key), child) for key, child in items]
        level = next_level
    return found


def test_every_path_that_is_found_can_be_written():
    names = every_name(Tied(), 6)
    assert len(names) == 12 and ("again", "x", "up", "head", "kernel") in names
    for path in names:
        for form in (path, ".".join(f"['{k}']" if k == "a.b" else str(k) for k in path)):
            form = form.replace(".[", "[") if isinstance(form, str) else form
            model = Tied()
            target = nnx.get_path(model, form)
            nnx.update(model, {form: jnp.full_like(target.value, 7)})
            assert (target.value == 7).all(), form
            nested = {}
            inner = nested
            for key in path[:-1]:
                inner = inner.setdefault(key, {})
            inner[path[-1]] = jnp.full_like(target.value, 8)
            nnx.update(model, nested)
            assert (target.value == 8).all(), path


def test_two_names_of_one_variable():
    model, kernel = Tied(), jnp.full((3, 3), 2.0)
    same = {"embed.kernel": kernel, "head.kernel": np.asarray(kernel)}  # as PyTorch's files have it
    nnx.update(model, same)
    assert (model.head.kernel.value == 2).all()
    nan = {name: value.at[0].set(jnp.nan) for name, value in zip(same, [kernel] * 2, strict=True)}
    nnx.update(model, nan)
    with pytest.raises(nnx.StructureError, match=r"`head\.kernel`.*`embed\.kernel`.*two values"):
        nnx.update(model, {"embed.kernel": kernel, "head": {"kernel": kernel + 1}})
    assert jnp.isnan(model.embed.kernel.value[0]).all()
    graphdef, state = nnx.split(model)
    with pytest.raises(nnx.StructureError, match="two values"):
        nnx.merge(graphdef, state, {"embed.kernel": kernel, "head": {"kernel": kernel + 1}})


def test_merge_takes_names_too():
    graphdef, _ = nnx.split(model := Tied())
    merged = nnx.merge(graphdef, other_values(model))
    np.testing.assert_array_equal(merged.head.bias.value, model.head.bias.value + 1)
    assert merged.head.kernel is merged.embed.kernel


def test_one_error_lists_all_and_nothing_is_written():
    model = Block()
    before = nnx.state(model)
    wrong = {
        "offset": jnp.ones(2),
        "layers.0.biass": jnp.ones(2),
        "layers.1.kernel": jnp.ones((2, 5)),
        "blocks.0.kernel": jnp.ones((2, 2)),
        "parts": {"norm": {"count": jnp.ones(1)}, "nothing": 1},
        "layers[9].bias": jnp.ones(2),
        "a..b": 1,
    }
    with pytest.raises(nnx.StructureError) as caught:
        nnx.update(model, wrong)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("nnx.update: 7 values") and lines[-1].startswith("Cure: ")
    text = "\n".join(sorted(lines))
    for part in (
        "`layers[0].biass`: the object has no Variable or array there. Did you mean 'bias'?",
        "`layers[1].kernel` is float32[2,2] in the object but float32[2,5] in the State.",
        "`blocks[0].kernel`: the object has no Variable or array there. Did you mean",
        "`parts.norm.count` is int32[] in the object but float32[1] in the State.",
        "`parts.nothing`",
        "`layers[9].bias`",
        "`['a..b']`",
    ):
        assert part in text
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)


def test_many_misfits_are_all_told():
    model = [Dense(1, 1) for _ in range(60)]
    wrong = {f"{i}.{name}": jnp.ones(5) for i in range(60) for name in ("kernal", "bias")}
    with pytest.raises(nnx.StructureError) as caught:
        nnx.update(model, wrong)
    assert str(caught.value).count("\n") == 121


# -- set_path -------------------------------------------------------------------------------------


def test_set_path_writes_into_the_variable():
    model = Tied()
    cell = model.head.kernel
    for value in (jnp.ones((3, 3)), np.full((3, 3), 2, np.float32)):
        nnx.set_path(model, "head.kernel", value)
        assert model.head.kernel is cell is model.embed.kernel
        np.testing.assert_array_equal(cell.value, value)
    with pytest.raises(nnx.StructureError, match=r"set_path: `head\.kernel` is float32\[3,3\] in"):
        nnx.set_path(model, "head.kernel", jnp.ones((3, 4)))
    new = nnx.Param(jnp.ones((3, 4)))
    nnx.set_path(model, "head.kernel", new)  # a Variable takes the place
    assert model.head.kernel is new
    nnx.set_path(model, "head.bias", None)
    assert model.head.bias is None


# -- new Variables --------------------------------------------------------------------------------


def test_a_variable_under_a_new_name_is_added():
    model = Block()
    loss, deep = nnx.Intermediate(jnp.ones(())), nnx.Param(jnp.ones(3), tag="t")
    nnx.update(model, {"loss": loss, "layers": {1: {"scale": deep}}, "parts.norm.seen": loss})
    assert type(model.loss) is nnx.Intermediate and model.loss is not loss and model.loss == 1
    assert model.layers[1].scale.tag == "t" and model.layers[1].scale is not deep
    assert model.parts["norm"].seen == 1 and model.parts["norm"].seen is not model.loss
    assert nnx.state(model, nnx.Intermediate).loss.value == 1  # cached plans know of it


def test_sown_values_come_back():
    class Sows(nnx.Module):
        def __call__(self, x):
            self.sow(nnx.Intermediate, "y", x)
            self.sow(nnx.Intermediate, "helper", 2 * x)

        def helper(self):
            return 0

    model = nnx.Dict(inner=Sows())
    model.inner(1.0)
    state = nnx.pop(model, nnx.Intermediate)
    assert vars(model.inner) == {}
    nnx.update(model, state)
    assert callable(model.inner.helper)
    nnx.update(model, state)  # now they are there
    again = nnx.pop(model, nnx.Intermediate)
    assert nnx.to_pure_dict(again) == {"inner": {"y": (1.0,), "helper": (2.0,)}}


NOT_ADDED: dict[str, Any] = {
    "a bare array": {"loss": jnp.ones(())},
    "inside of nothing": {"more": {"loss": nnx.Param(jnp.ones(()))}},
    "a static attribute": {"name": nnx.Param(jnp.ones(()))},
    "a misspelt name": {"layers": {0: {"kernal": nnx.Param(jnp.ones((2, 2)))}}},
    "beside something else that is wrong": {"loss": nnx.Param(jnp.ones(())), "offset": jnp.ones(9)},
}


@pytest.mark.parametrize("state", NOT_ADDED.values(), ids=NOT_ADDED)
def test_what_is_not_added(state):
    model = Block()
    before = nnx.split(model)
    with pytest.raises(nnx.StructureError):
        nnx.update(model, state)
    assert nnx.graphdef(model) == before[0] and not hasattr(model, "loss")


def test_a_variable_is_not_added_to_an_outer_object():
    model = Block()
    with pytest.raises(nnx.TraceContextError):
        jax.jit(lambda x: nnx.update(model, {"loss": nnx.Param(x)}))(1.0)
    assert not hasattr(model, "loss")


# -- pytrees --------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Quantized:
    values: jax.Array
    scale: jax.Array


class Moments(NamedTuple):
    nu: Any
    mu: Any


def quantized(x):
    return Quantized(jnp.round(x * 10).astype(jnp.int8), jnp.full((), 0.1))


def test_a_pytree_where_an_array_was():
    model = Dense(2, 3)
    graphdef, state = nnx.split(model)
    by_value = nnx.State({"kernel": quantized(state.kernel.value), "bias": state.bias})
    by_cell = nnx.State({**state, "kernel": nnx.Param(quantized(state.kernel.value))})
    by_map = jax.tree.map(lambda x: quantized(x) if x.ndim == 2 else x, state)
    for given in (by_value, by_cell, by_map):
        merged = nnx.merge(graphdef, given)
        assert type(merged.kernel) is nnx.Param and type(merged.kernel.value) is Quantized
        nnx.update(target := Dense(2, 3), given)
        assert type(target.kernel.value) is Quantized and target.kernel.value.values.dtype == "int8"
        assert type(nnx.jit(lambda m: m)(target).kernel.value) is Quantized
    with pytest.raises(nnx.StructureError, match="`kernel`"):  # a dict is a structure, not a value
        nnx.update(model, {"kernel": {"values": jnp.ones(2)}})


def test_attributes_that_are_pytrees():
    model = Node(q=Quantized(jnp.zeros(2), jnp.zeros(())), m=Moments(jnp.zeros(2), jnp.zeros(1)))
    new = Quantized(jnp.ones(2), jnp.full((), 5.0))
    nnx.update(model, {"q": new})
    assert type(model.q) is Quantized and model.q.scale == 5
    nnx.update(model, jax.tree.map(lambda x: x + 1, nnx.state(model)))
    assert model.q.scale == 6 and (model.m.nu == 1).all()
    # as a checkpoint returns them: by name, whatever the order of the fields is
    nnx.update(model, {"q": {"scale": jnp.zeros(()), "values": jnp.ones(2)}})
    assert model.q.scale == 0 and (model.q.values == 1).all()
    nnx.update(model, {"m": {"mu": jnp.full(1, 3.0), "nu": jnp.full(2, 4.0)}})
    assert (model.m.mu == 3).all() and (model.m.nu == 4).all()
    nnx.update(model, {"m": [jnp.full(2, 5.0), jnp.full(1, 6.0)]})
    assert (model.m.nu == 5).all() and (model.m.mu == 6).all()


def test_pytrees_with_variables_in_them():
    model = Node(q=Quantized(nnx.Param(jnp.zeros(2)), nnx.Param(jnp.zeros(()))))
    cell = model.q.values
    nnx.update(model, {"q": Quantized(jnp.ones(2), nnx.Param(jnp.ones(())))})
    assert model.q.values is cell and (cell.value == 1).all() and model.q.scale == 1
    nnx.update(model, {"q.values": jnp.full(2, 3.0)})
    assert (cell.value == 3).all()
