"""`nnx.List` and `nnx.Dict`: what a list and a dict do, as Modules, in and out of transforms."""

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Count, Dense, Node
from tests.transforms.cases import CASES, X

A, B, C, D = (Dense(1, 1, seed=i) for i in range(4))

LIST_CHANGES = {
    "append": lambda x: x.append(D),
    "extend": lambda x: x.extend([D, 7]),
    "extend by itself": lambda x: x.extend(x),
    "insert": lambda x: x.insert(1, D),
    "insert at the end": lambda x: x.insert(99, D),
    "insert before the end": lambda x: x.insert(-1, D),
    "pop": lambda x: x.pop(),
    "pop the first": lambda x: x.pop(0),
    "remove": lambda x: x.remove(B),
    "clear": lambda x: x.clear(),
    "reverse": lambda x: x.reverse(),
    "sort": lambda x: x.sort(key=lambda m: -m.kernel.value.sum()),
    "sort backwards": lambda x: x.sort(key=id, reverse=True),
    "set": lambda x: x.__setitem__(0, D),
    "set from the end": lambda x: x.__setitem__(-1, D),
    "set a slice": lambda x: x.__setitem__(slice(0, 2), [D]),
    "set a longer slice": lambda x: x.__setitem__(slice(1, 2), [D, D, D]),
    "set every second": lambda x: x.__setitem__(slice(None, None, 2), [D, 1]),
    "delete": lambda x: x.__delitem__(1),
    "delete from the end": lambda x: x.__delitem__(-1),
    "delete a slice": lambda x: x.__delitem__(slice(1, None)),
    "add in place": lambda x: x.__iadd__([D]),
    "repeat in place": lambda x: x.__imul__(2),
    "no index": lambda x: x.__setitem__(3, D),
    "no such item": lambda x: x.remove(D),
    "wrong length": lambda x: x.__setitem__(slice(None, None, 2), [D]),
    "no index to pop": lambda x: x.pop(7),
}
LIST_QUESTIONS = {
    "length": len,
    "items": list,
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
    "slice": lambda x: x[1:],
    "steps": lambda x: x[::-1],
    "contains": lambda x: (B in x, D in x),
    "index": lambda x: x.index(C),
    "index from": lambda x: x.index(C, 1, 3),
    "no index": lambda x: x.index(D),
    "count": lambda x: x.count(A),
    "equal to its own kind": lambda x: x == type(x)([A, B, C]),
    "reversed": lambda x: list(reversed(x)),
    "sum": lambda x: list(x + [D]),
    "reflected sum": lambda x: list([D] + x),
    "product": lambda x: list(x * 2),
    "reflected product": lambda x: list(2 * x),
    "copy": lambda x: list(x.copy()),
    "equal": lambda x: (x == [A, B, C], x == [A], x != [A, B, C], x == 3),
    "beyond": lambda x: x[3],
    "below": lambda x: x[-4],
    "truth": bool,
    "unpacked": lambda x: [*x],
    "by bool": lambda x: x[True],
    "by array": lambda x: x[np.int64(1)],
    "by text": lambda x: x["a"],
}
DICT_CHANGES = {
    "set": lambda x: x.__setitem__("d", D),
    "replace": lambda x: x.__setitem__("a", D),
    "update": lambda x: x.update({"d": D}, e=1),
    "update by pairs": lambda x: x.update([("d", D)]),
    "update in place": lambda x: x.__ior__({"a": D, "e": 2}),
    "setdefault": lambda x: x.setdefault("d", D),
    "setdefault of a known one": lambda x: x.setdefault("a", D),
    "pop": lambda x: x.pop("b"),
    "pop what is not there": lambda x: x.pop("d", 3),
    "popitem": lambda x: x.popitem(),
    "delete": lambda x: x.__delitem__("b"),
    "clear": lambda x: x.clear(),
    "no such key": lambda x: x.__delitem__("d"),
    "no such key to pop": lambda x: x.pop("d"),
    "a tuple as a key": lambda x: x.__setitem__((1, 2), D),
    "an int as a key": lambda x: x.__setitem__(7, D),
}
DICT_QUESTIONS = {
    "length": len,
    "keys": list,
    "items": lambda x: list(x.items()),
    "values": lambda x: list(x.values()),
    "get": lambda x: (x["a"], x.get("a"), x.get("d"), x.get("d", 3)),
    "contains": lambda x: ("a" in x, "d" in x, "d" not in x),
    "missing": lambda x: x["d"],
    "union": lambda x: dict(x | {"a": D}),
    "reflected union": lambda x: dict({"a": D, "e": 1} | x),
    "copy": lambda x: dict(x.copy()),
    "equal": lambda x: (x == {"a": A, "b": B, "c": C}, x == {"a": A}, x == 3),
    "truth": bool,
    "unpacked": lambda x: {**x},
    "fromkeys": lambda x: dict(type(x).fromkeys(["u", "v"], 1)),
}


def outcome(f, x):
    try:
        result = f(x)
    except Exception as error:
        return type(error)
    return None if result is x else result


@pytest.mark.parametrize("change", LIST_CHANGES)
def test_a_list_changes_as_a_list(change):
    ours, theirs = nnx.List([A, B, C]), [A, B, C]
    assert outcome(LIST_CHANGES[change], ours) == outcome(LIST_CHANGES[change], theirs)
    assert list(ours) == theirs and len(ours) == len(theirs)
    assert list(vars(ours)) == list(range(len(theirs)))


@pytest.mark.parametrize("question", LIST_QUESTIONS)
def test_a_list_answers_as_a_list(question):
    f = LIST_QUESTIONS[question]
    assert outcome(f, nnx.List([A, B, C])) == outcome(f, [A, B, C])


@pytest.mark.parametrize("change", DICT_CHANGES)
def test_a_dict_changes_as_a_dict(change):
    ours, theirs = nnx.Dict(a=A, b=B, c=C), {"a": A, "b": B, "c": C}
    assert outcome(DICT_CHANGES[change], ours) == outcome(DICT_CHANGES[change], theirs)
    assert list(ours.items()) == list(theirs.items())


@pytest.mark.parametrize("question", DICT_QUESTIONS)
def test_a_dict_answers_as_a_dict(question):
    f = DICT_QUESTIONS[question]
    assert outcome(f, nnx.Dict(a=A, b=B, c=C)) == outcome(f, {"a": A, "b": B, "c": C})


def test_they_are_modules():
    for made in (nnx.List([A]), nnx.Dict(a=A)):
        assert isinstance(made, (nnx.Pytree, nnx.Module)) and hash(made) == hash(made)
        assert not isinstance(made, (list, dict))
        assert jax.tree.structure(made) == jax.tree.structure(copy.copy(made))
        assert made in {made} and nnx.clone(made) not in {made}
    blocks = nnx.List([nnx.Dict(drop=nnx.Dropout(0.5, rngs=nnx.Rngs(0)))])
    blocks.eval()
    assert blocks[0].drop.deterministic
    nnx.Dict(blocks=blocks).train()
    assert not blocks[0].drop.deterministic
    blocks[0].set_attributes(rate=0.25)
    assert blocks[0]["drop"].rate == 0.25
    assert [path for path, _ in blocks.iter_modules()] == [(0, "drop"), (0,), ()]
    assert [name for name, _ in blocks.iter_children()] == [0]
    assert [name for name, _ in blocks.named_variables(nnx.RngCount)] == ["0.drop.rngs.count"]
    blocks.sow(nnx.Intermediate, "seen", jnp.ones(()))
    assert len(blocks) == 1 and nnx.pop(blocks, nnx.Intermediate)["seen"].value == (1.0,)
    del blocks[0]
    assert not blocks


def test_paths_copies_and_files():
    model = Node(blocks=nnx.List([nnx.Dict(a=Dense(1, 1)), nnx.Param(jnp.ones(1))]), k=nnx.Dict())
    paths = [("blocks", 0, "a", "bias"), ("blocks", 0, "a", "kernel"), ("blocks", 1)]
    assert [p for p, _ in nnx.to_flat_state(nnx.state(model))] == paths
    copies = [nnx.clone(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    copies += [nnx.merge(*nnx.split(model)), jax.tree.map(lambda x: x, model)]
    for made in copies:
        assert type(made.blocks) is nnx.List and type(made.k) is type(made.blocks[0]) is nnx.Dict
        assert made.blocks[0] is not model.blocks[0]
        made.blocks.append(3)
        made.blocks[0].b = 4
        assert len(made.blocks) == 3 and len(model.blocks) == 2 and "b" not in model.blocks[0]
    assert nnx.get_path(model, "blocks.-1") is model.blocks[1]
    nnx.set_path(model, "blocks[1]", B)
    nnx.set_path(model, "blocks[0].a", 6)
    assert model.blocks[1] is B and model.blocks[0] == {"a": 6}
    with pytest.raises(ValueError, match=r"`blocks\[0\]` stands in a List"):
        nnx.pop(Node(blocks=nnx.List([nnx.Param(jnp.ones(1))])), nnx.Param)
    held = nnx.Dict({"a": nnx.Param(jnp.ones(1)), 3: nnx.Param(jnp.ones(1))})
    assert len(nnx.to_flat_state(nnx.pop(held, nnx.Param))) == 2 and not held


def test_names_of_methods_and_subclasses():
    scores = nnx.Dict(items=1, values=2, train=3, update=4)
    assert scores["items"] == scores.items == 1 and list(scores) == list(dict(scores))
    assert scores == {"items": 1, "values": 2, "train": 3, "update": 4} and len(scores) == 4
    scores |= {"pop": 5}
    assert nnx.clone(scores)["pop"] == 5

    class Blocks(nnx.List):
        def __init__(self, count):
            super().__init__(Dense(1, 1, seed=i) for i in range(count))
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            for block in self:
                x = block(x) * self.scale
            return x

    blocks = Blocks(2)
    del blocks[0]
    blocks.append(Dense(1, 1))
    blocks[:] = blocks[::-1]
    assert len(blocks) == 2 and blocks.scale.value == 1 and blocks(jnp.ones((1, 1))).shape == (1, 1)
    assert nnx.jit(lambda b: len(b))(blocks) == 2


def test_marks():
    items = nnx.List([nnx.data(1), 2, nnx.static("a"), nnx.data(4.0)])
    assert list(items) == [1, 2, "a", 4.0] and jax.tree.leaves(items) == [1, 4.0]
    items.insert(0, nnx.data(0))
    items.reverse()
    assert list(items) == [4.0, "a", 2, 1, 0] and jax.tree.leaves(items) == [4.0, 1, 0]
    items.sort(key=str)
    assert list(items) == [0, 1, 2, 4.0, "a"] and jax.tree.leaves(items) == [0, 1, 4.0]
    del items[0]
    items.extend([nnx.data(7), 8])
    assert jax.tree.leaves(items) == [1, 4.0, 7]
    assert jax.tree.leaves(items.copy()) == [1, 4.0, 7] == jax.tree.leaves(nnx.clone(items))
    entries = nnx.Dict(a=nnx.data(1), b=2)
    entries["c"] = nnx.data(3)
    assert dict(entries) == {"a": 1, "b": 2, "c": 3} and jax.tree.leaves(entries) == [1, 3]

    @nnx.jit
    def f(items, entries):
        items.append(nnx.data(2.0))
        entries.d = nnx.data(5.0)
        return items[0] + 1

    assert f(items, entries) == 2
    assert jax.tree.leaves(items) == [1, 4.0, 7, 2.0] and jax.tree.leaves(entries) == [1, 3, 5.0]


def test_derivatives_beside_numbers():
    def loss(m):
        w, n = m.values() if isinstance(m, nnx.Dict) else m
        return w.value.sum() * n

    for model in (nnx.Dict(w=nnx.Param(X), n=3), nnx.List([nnx.Param(X), 3])):
        grads = nnx.grad(loss)(model)
        np.testing.assert_array_equal(jax.tree.leaves(grads)[0], [3, 3, 3])
        assert nnx.value_and_grad(loss)(model)[0] == 3 * X.sum()


# -- in transforms -------------------------------------------------------------------------------


def make() -> Node:
    return Node(
        list=nnx.List([nnx.Param(jnp.ones((3, 3))), jnp.ones((3, 3)), 5]),
        dict=nnx.Dict(a=nnx.Param(jnp.ones((3, 3))), b=jnp.ones((3, 3)), n=5),
    )


BODY_CHANGES = {
    "list append": lambda m: m.list.append(Count(m.list[1] * 2.0)),
    "list insert": lambda m: m.list.insert(0, m.list[1] * 3.0),
    "list set": lambda m: m.list.__setitem__(1, m.list[1] + 1.0),
    "list set a number": lambda m: m.list.__setitem__(2, 6),
    "list pop": lambda m: m.list.pop(),
    "list reverse": lambda m: m.list.reverse(),
    "list slice": lambda m: m.list.__setitem__(slice(0, 2), [m.list[1], m.list[0]]),
    "list value": lambda m: m.list[0].__iadd__(1.0),
    "dict set": lambda m: setattr(m.dict, "c", m.dict.b * 2.0),
    "dict replace": lambda m: m.dict.__setitem__("b", m.dict.b + 1.0),
    "dict number": lambda m: setattr(m.dict, "n", 6),
    "dict delete": lambda m: delattr(m.dict, "a"),
    "dict pop": lambda m: m.dict.pop("b"),
    "dict update": lambda m: m.dict.update(x=m.list[0], y=m.list),
    "dict value": lambda m: m.dict.a.__iadd__(1.0),
}


def contents(m: Any) -> Any:
    def plain(x):
        return np.asarray(x.value if isinstance(x, nnx.Variable) else x).tolist()

    leaves = [(path, plain(v)) for path, v in nnx.to_flat_state(nnx.state(m))]
    numbers = [(path, v) for path, v in nnx.iter_graph(m) if isinstance(v, int)]
    return leaves, numbers, list(m.dict), len(m.list)


@pytest.mark.parametrize("case", [c for c in CASES if c.propagates and c.structure], ids=str)
def test_what_a_transformed_function_does_to_them_comes_back(case):
    for name, change in BODY_CHANGES.items():
        inside, alone = make(), make()
        change(alone)
        held = inside.list, inside.dict
        case.make(lambda m, x, change=change: (change(m), x)[1])(inside, X)
        assert contents(inside) == contents(alone), name
        assert (inside.list, inside.dict) == held and inside.list is held[0]


@pytest.mark.parametrize("transform", [nnx.jit, nnx.remat, nnx.vmap], ids=lambda t: t.__name__)
def test_as_arguments_of_their_own(transform):
    def change(items, entries):
        items[0] = items[0] + 1
        items.append(entries.w)
        entries.n = entries.n + 1
        entries.new = items
        del entries["gone"]

    items = nnx.List([jnp.zeros(2)])
    entries = nnx.Dict(w=nnx.Param(jnp.ones(2)), n=jnp.zeros(2), gone=jnp.ones(2))
    transform(change)(items, entries)
    assert entries.new is items and items[1] is entries.w and "gone" not in entries
    np.testing.assert_array_equal(items[0], [1, 1])
    np.testing.assert_array_equal(entries.n, [1, 1])
    second = nnx.jit(lambda items, entries: (items, entries))(items, entries)
    assert second[0] is items and second[1] is entries


@pytest.mark.parametrize(
    "write",
    [
        lambda m: m.list.append(1),
        lambda m: m.list.__setitem__(0, 1),
        lambda m: m.list.sort(key=id),
        lambda m: m.list.__delitem__(0),
        lambda m: m.list.clear(),
        lambda m: setattr(m.dict, "n", 1),
        lambda m: m.dict.update(z=1),
        lambda m: m.dict.pop("n"),
        lambda m: m.dict.clear(),
        lambda m: m.dict.__ior__({"n": 2}),
    ],
)
def test_writes_from_another_trace_are_refused(write):
    m = make()
    before = contents(m)
    for transform in (jax.jit, nnx.jit, nnx.remat, jax.vmap):
        with pytest.raises(nnx.TraceContextError, match="(List|Dict)"):
            transform(lambda x: (write(m), x)[1])(X)
    assert contents(m) == before


def test_a_plan_follows_them():
    def count(m):
        return nnx.jit(lambda m: len(jax.tree.leaves(nnx.state(m))))(m)

    for change in BODY_CHANGES.values():
        m, before = make(), nnx.graphdef(make())
        assert count(m) == 4 and nnx.graphdef(m) == before
        change(m)
        assert count(m) == len(jax.tree.leaves(nnx.state(nnx.clone(m))))
        assert nnx.graphdef(m) == nnx.graphdef(nnx.clone(m))
