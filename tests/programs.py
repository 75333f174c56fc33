"""Random programs: changes, verbs and nested transforms on a world of objects, with failures.

A program is a list of statements. `run` does them to a world through refax's transforms,
`run_naively` in plain Python, where a transform is a call of its body and a failure puts everything
back. After every statement the two worlds must be isomorphic, with equal values and no tracer.
Values are multiples of powers of two, so that compiled and eager arithmetic agree exactly.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from hypothesis import strategies as st

from refax import nnx
from tests import strategies as graphs
from tests.models import Node
from tests.transforms.cases import CASES

X = jnp.ones(2)
TX = optax.sgd(0.25, momentum=0.5)
# What needs no common axis of all leaves. Loops keep the form of what they carry.
TRANSFORMS = {
    case.name: case
    for case in CASES
    if case.propagates and case.name not in ("vmap", "pmap", "shard_map", "scan", "jvp")
}
FORM_STAYS = frozenset(name for name, case in TRANSFORMS.items() if not case.structure)


class Failure(Exception):
    """What a program raises on purpose."""


@dataclasses.dataclass(frozen=True)
class Statement:
    kind: str
    seed: int = 0
    name: str = ""
    body: tuple[Statement, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        yield f"{self.kind} {self.name} {self.seed}"
        for statement in self.body:
            yield from ("    " + line for line in statement.lines())


seeds = st.integers(0, 2**32 - 1)
_VALUES_ONLY = ["new value"]
_CHANGES = [kind for kind in graphs.KINDS if kind != "mark as data"]
# Verbs that may also run inside of a transform, and those that replace objects by others.
_VERBS_INSIDE = ("update from itself", "halve", "train", "read")
_VERBS_OUTSIDE = (*_VERBS_INSIDE, "merge", "clone", "deepcopy", "save", "restore", "list", "dict")


def statements(depth: int, names: tuple[str, ...], form_stays: bool) -> st.SearchStrategy:
    changes = _VALUES_ONLY if form_stays else _CHANGES
    verbs = _VERBS_OUTSIDE if depth == 3 else _VERBS_INSIDE
    kinds = [
        st.builds(Statement, st.sampled_from(changes), seeds),
        st.builds(Statement, st.just("verb"), seeds, st.sampled_from(verbs)),
    ]
    if depth < 3:
        kinds.append(st.just(Statement("fail")))
    if depth:
        kinds += [transformed(depth, names, form_stays)] * 2
    return st.one_of(kinds)


def transformed(depth: int, names: tuple[str, ...], form_stays: bool) -> st.SearchStrategy:
    def of(name: str) -> st.SearchStrategy:
        inner = statements(depth - 1, names, form_stays or name in FORM_STAYS)
        body = st.lists(inner, min_size=1, max_size=4).map(tuple)
        kind = st.sampled_from(["transform", "transform", "attempt"])
        return st.builds(Statement, kind, seeds, st.just(name), body)

    return st.sampled_from(names).flatmap(of)


def programs(names: tuple[str, ...] = tuple(TRANSFORMS)) -> st.SearchStrategy:
    return st.lists(statements(3, names, False), min_size=1, max_size=6)


# -- worlds --------------------------------------------------------------------------------------


class World:
    """Everything that a program works on."""

    def __init__(self, seed: int):
        self.root = graphs.make_graph(seed, 3)
        self.net = Node(w=nnx.Param(jnp.full((2,), 1.5)), b=nnx.Param(jnp.float32(-0.25)))
        self.optimizer = nnx.Optimizer(self.net, TX, wrt=nnx.Param)
        self.list = nnx.List([nnx.Variable(jnp.float32(2.0))])
        self.dict = nnx.Dict(a=nnx.Variable(jnp.float32(4.0)))
        self.saved: Any = None
        self.log: list[float] = []

    def objects(self) -> dict[str, Any]:
        names = ("root", "net", "optimizer", "list", "dict")
        return {name: getattr(self, name) for name in names}

    def everything(self) -> Node:
        return Node(**self.objects())


def do_verb(world: Any, objects: dict[str, Any], statement: Statement) -> None:
    """A verb on the objects; `world` is None inside of a transform."""
    name = statement.name
    root, net = objects["root"], objects["net"]
    if name == "update from itself":
        nnx.update(root, nnx.state(root))
    elif name == "halve":
        floats = nnx.filter_state(nnx.state(net, nnx.Param), ...)
        nnx.update(net, jax.tree.map(lambda x: x / 2, floats))
    elif name == "train":
        grads = nnx.grad(lambda net: (net.w.value**2).sum() + net.b.value**2)(net)
        objects["optimizer"].update(net, grads)
    elif name == "read":
        graphs.total(root)
    elif name == "merge":
        world.root = nnx.merge(*nnx.split(root))
    elif name == "clone":
        world.root = nnx.clone(root)
    elif name == "deepcopy":
        world.root = copy.deepcopy(root)
    elif name == "save":
        world.saved = nnx.split(root)
    elif name == "restore" and world.saved is not None:
        world.root = nnx.merge(*world.saved)
    elif name == "list":
        objects["list"].append(nnx.Variable(jnp.float32(statement.seed % 8)))
    elif name == "dict":
        setattr(objects["dict"], "abc"[statement.seed % 3], nnx.Variable(jnp.float32(1.0)))


def run(world: World, statement: Statement) -> None:
    """One statement, by refax's transforms."""
    _do(world, world.objects(), statement, _by_transform)


def run_naively(world: World, statement: Statement) -> None:
    """One statement, in plain Python."""
    _do(world, world.objects(), statement, _by_calling)


def _do(world: Any, objects: dict[str, Any], statement: Statement, call: Callable) -> None:
    if statement.kind == "verb":
        do_verb(world, objects, statement)
    elif statement.kind == "fail":
        raise Failure
    elif statement.kind in ("transform", "attempt"):

        def body(objects: Any, x: Any) -> Any:
            for inner in statement.body:
                _do(None, objects, inner, call)
            return x

        try:
            call(statement.name, body, objects)
        except Failure:
            if world is None and statement.kind != "attempt":
                raise
    else:
        graphs.apply(objects["root"], graphs.Change(statement.kind, statement.seed))


def _by_transform(name: str, body: Callable, objects: dict[str, Any]) -> None:
    if name == "checkify":  # whose error would be thrown, which JAX allows outside of loops only
        nnx.checkify(body)(objects, X)
    else:
        TRANSFORMS[name].make(body)(objects, X)


def _by_calling(name: str, body: Callable, objects: dict[str, Any]) -> None:
    backup = Backup(objects)
    try:
        body(objects, X)
    except Failure:
        backup.restore()
        raise


class Backup:
    """The content of every object that can be reached, to be put back in place."""

    def __init__(self, objects: dict[str, Any]):
        self.contents: list[tuple[Any, Any]] = []
        for obj in graphs.objects_of(list(objects.values())):
            if isinstance(obj, nnx.Variable):
                content: Any = (obj.raw_value, obj.get_metadata())
            elif isinstance(obj, (list, nnx.List)):
                content = list(obj)
            elif isinstance(obj, nnx.State):
                content = dict(obj._tree)
            else:
                content = dict(obj if isinstance(obj, dict) else vars(obj))
            self.contents.append((obj, content))

    def restore(self) -> None:
        for obj, content in self.contents:
            if isinstance(obj, nnx.Variable):
                obj.value, metadata = content
                obj.set_metadata(metadata)
            elif isinstance(obj, (list, nnx.List)):
                obj[:] = content
            elif isinstance(obj, (dict, nnx.State)):
                mapping = obj._tree if isinstance(obj, nnx.State) else obj
                mapping.clear()
                mapping.update(content)
            else:
                for name in list(vars(obj)):
                    delattr(obj, name)
                for name, value in content.items():
                    setattr(obj, name, value)
