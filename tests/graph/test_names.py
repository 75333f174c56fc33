"""Names: what they are, in which order, and that each is found again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest

from refax import nnx


class Attention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.query = nnx.Linear(2, 2, rngs=rngs)
        self.kernel = nnx.Param(jnp.ones((2, 2)))
        self.name = "attention"


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.attn = Attention(rngs)


class Model(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.blocks = [Block(rngs) for _ in range(11)]
        self.heads = {"a.b": nnx.Linear(2, 1, rngs=rngs), "it's ]": nnx.Param(jnp.zeros(1))}
        self.tied = self.blocks[3].attn.kernel
        self.pair = (nnx.Param(jnp.zeros(2)), 5)
        self.parent = self  # a cycle


@pytest.fixture
def model() -> Model:
    return Model()


def test_named_variables_are_in_the_order_of_the_state(model: Model) -> None:
    names = [name for name, _ in model.named_variables()]
    of_state = [path for path, _ in nnx.to_flat_state(nnx.state(model))]
    assert [".".join(map(str, p)) for p in of_state] == [
        n.replace("['a.b']", ".a.b").replace('["it\'s ]"]', ".it's ]") for n in names
    ]
    assert names.index("blocks.2.attn.kernel") < names.index("blocks.10.attn.kernel")
    assert names == [name for name, _ in Model().named_variables()]


def test_each_shared_object_comes_once_by_its_first_path(model: Model) -> None:
    variables = dict(model.named_variables())
    assert len({id(v) for v in variables.values()}) == len(variables)
    assert variables["blocks.3.attn.kernel"] is model.tied and "tied" not in variables
    modules = dict(model.named_modules())
    assert modules[""] is model and "parent" not in modules


def test_filters(model: Model) -> None:
    statistics = dict(model.named_variables(nnx.BatchStat))
    assert list(statistics)[:2] == ["blocks.0.norm.mean", "blocks.0.norm.var"]
    assert len(statistics) == 22
    parameters = dict(model.named_parameters())
    assert set(parameters) | set(statistics) == {name for name, _ in model.named_variables()}
    assert all(isinstance(v, nnx.Param) for v in parameters.values())


def test_named_modules_come_before_what_is_inside_them() -> None:
    names = [name for name, _ in nnx.named_modules({"first": Block(nnx.Rngs(0)), "rest": []})]
    assert names == ["first", "first.attn", "first.attn.query", "first.norm"]


def test_every_name_is_found_again(model: Model) -> None:
    for name, variable in model.named_variables():
        assert nnx.get_path(model, name) is variable
    for name, module in model.named_modules():
        assert nnx.get_path(model, name) is module
    for path, value in nnx.iter_graph(model):
        found = nnx.get_path(model, path)
        assert found is value or found == value


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("blocks.3.attn", lambda m: m.blocks[3].attn),
        ("blocks[3].attn", lambda m: m.blocks[3].attn),
        (("blocks", 3, "attn"), lambda m: m.blocks[3].attn),
        (("blocks", "3", "attn"), lambda m: m.blocks[3].attn),
        (["blocks", 3], lambda m: m.blocks[3]),
        ("blocks[-1].attn.name", lambda m: "attention"),
        ("blocks.-2", lambda m: m.blocks[9]),
        (("heads", "a.b"), lambda m: m.heads["a.b"]),
        ("heads['a.b'].kernel", lambda m: m.heads["a.b"].kernel),
        ("pair.1", lambda m: 5),
        ("parent.parent.blocks", lambda m: m.blocks),
        ("", lambda m: m),
        ((), lambda m: m),
    ],
)  # fmt: skip
def test_spellings_of_a_path(path: Any, expected: Callable[[Model], Any], model: Model) -> None:
    found = nnx.get_path(model, path)
    assert found is expected(model)


def test_keys_of_other_types() -> None:
    first, second, third = (nnx.Param(jnp.full(1, i)) for i in range(3))
    tables = {(1, "a"): first, 3: second}
    assert [name for name, _ in nnx.named_variables(tables)] == ["3", "[(1, 'a')]"]
    assert nnx.get_path(tables, "[(1, 'a')]") is first
    assert nnx.get_path(tables, ((1, "a"),)) is first
    assert nnx.get_path(tables, "3") is second is nnx.get_path(tables, "[3]")
    both = {3: second, "3": third}
    assert nnx.get_path(both, (3,)) is second and nnx.get_path(both, ("3",)) is third
    assert nnx.get_path(both, "[3]") is second and nnx.get_path(both, "['3']") is third


def test_paths_into_a_state(model: Model) -> None:
    state = nnx.state(model, nnx.Param)
    assert nnx.get_path(state, "blocks.3.attn.kernel").shape == (2, 2)
    nnx.set_path(state, "blocks.3.attn.kernel", jnp.zeros((2, 2)))
    assert not state.blocks[3].attn.kernel.any()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("blocks.3.atn.kernel", ["no 'atn' in `Model.blocks[3]`, a Block", "mean 'attn'?"]),
        ("blocks.30", ["no '30' in `Model.blocks`, a list"]),
        ("blocks[-12]", ["no '[-12]' in `Model.blocks`, a list"]),
        (("blocks", 3, "query"), ["no 'query' in `Model.blocks[3]`", "'blocks.3.attn.query'?"]),
        ("heads.a.b", ["no 'a' in `Model.heads`, a dict", "it has 'a.b'"]),
        ("tied.x", ["no 'x' in `Model.tied`, a Param", "it has no parts"]),
        ("blocks..attn", ["'blocks..attn' is not a path: cannot read '..attn'"]),
    ],
)
def test_what_is_not_found_is_named(path: Any, words: list[str], model: Model) -> None:
    with pytest.raises(nnx.PathError) as info:
        nnx.get_path(model, path)
    assert isinstance(info.value, LookupError) and isinstance(info.value, nnx.GraphError)
    for word in words:
        assert word in str(info.value)
    assert "Cure: " in str(info.value)


def test_set_path_is_the_assignment(model: Model) -> None:
    new = nnx.Linear(2, 2, rngs=nnx.Rngs(1))
    nnx.set_path(model, "blocks.3.attn.query", new)
    nnx.set_path(model, "blocks[-1]", new)
    nnx.set_path(model, ("heads", "a.b"), new)
    assert model.blocks[3].attn.query is model.blocks[10] is model.heads["a.b"] is new
    assert nnx.state(model).blocks[3].attn.query.kernel.value is new.kernel.value
    for path, word in (("pair.0", "a tuple"), ("", "itself"), ("blocks.3.query", "no 'query'")):
        with pytest.raises(nnx.PathError, match=word):
            nnx.set_path(model, path, new)


def test_surgery_while_iterating(model: Model) -> None:
    rngs = nnx.Rngs(1)
    for name, module in model.named_modules():
        if isinstance(module, nnx.Linear):
            nnx.set_path(model, name, nnx.LoRALinear(module, rank=1, rngs=rngs))
    kinds = [type(m) for _, m in model.named_modules()]
    assert kinds.count(nnx.LoRALinear) == 12


def test_names_inside_a_transform(model: Model) -> None:
    outside = [name for name, _ in model.named_parameters()]

    @nnx.jit
    def total(model: Model) -> Any:
        assert [name for name, _ in model.named_parameters()] == outside
        nnx.get_path(model, "blocks.0.attn.kernel").value *= 2
        return sum(jnp.sum(p.value) for _, p in model.named_parameters())

    before = sum(float(jnp.sum(p.value)) for _, p in model.named_parameters())
    # The sum of 11 kernels of eights ones, of random ones about 1: float32 rounding.
    assert float(total(model)) == pytest.approx(before + 4, rel=1e-5)


def test_iter_modules_and_children_as_functions(model: Model) -> None:
    assert [p for p, _ in nnx.iter_modules(model)] == [p for p, _ in model.iter_modules()]
    block = model.blocks[0]
    assert list(nnx.iter_children(block)) == [("attn", block.attn), ("norm", block.norm)]
    assert [p for p, _ in nnx.iter_modules([block])][-1] == (0,)


class Named(nnx.List):
    """A List with an attribute beside its items."""


def test_negative_indices_count_items_only():
    items = Named([nnx.Param(1.0), nnx.Param(2.0)])
    items.name = nnx.Param(3.0)
    assert nnx.get_path(items, "-1") is items[1] and nnx.get_path(items, "-2") is items[0]
    with pytest.raises(nnx.PathError, match="'-3'"):
        nnx.get_path(items, "-3")
