"""What bodies do to a model in the conformance table, and how a test watches the outcome."""

from typing import Any

import jax
import jax.numpy as jnp

from refax import nnx
from tests import strategies as graphs
from tests.models import Count, Node, Pair


def ones(factor: float = 1.0) -> jax.Array:
    return jnp.full((3, 3), factor, jnp.float32)


def make_model() -> Node:
    """Sharing, a cycle, containers, a bare array, statics, metadata; leaves with two axes of 3."""
    model = Node(
        w=nnx.Param(ones(1), tag="w"),
        stat=nnx.BatchStat(ones(2)),
        count=Count(jnp.zeros((3, 3), jnp.int32)),
        items=[nnx.Param(ones(3)), 5],
        parts={"a": nnx.Param(ones(4)), "pair": Pair(nnx.Param(ones(5)), "text")},
        offset=ones(6),
        mode="train",
    )
    model.child = Node(w=model.w, parent=model, list=model.items)
    return model


def tracers_in(root: Any) -> list[Any]:
    found = []
    for obj in graphs.objects_of(root):
        values = [x for _, x in graphs.children(obj)]
        if isinstance(obj, nnx.Variable):
            values = [obj.raw_value, *obj.get_metadata().values()]
        stop = None if isinstance(obj, nnx.Variable) else graphs.has_identity
        leaves = [x for value in values for x in jax.tree.leaves(value, is_leaf=stop)]
        found += [x for x in leaves if isinstance(x, jax.core.Tracer)]
    return found


class Watched:
    """A model, an eager twin, and all their objects side by side, also those that get lost."""

    def __init__(self) -> None:
        self.model, self.twin = make_model(), make_model()
        self.objects = graphs.objects_of(self.model)
        self.twins = graphs.objects_of(self.twin)

    def check(self) -> None:
        """The model and every object it had look like the twin's."""
        ours = Node(root=self.model, objects=self.objects)
        theirs = Node(root=self.twin, objects=self.twins)
        assert graphs.difference(ours, theirs) == ""
        assert tracers_in(ours) == []


def swap(m: Node) -> None:
    m.w, m.stat = m.stat, m.w


VALUES = {
    "nothing": lambda m, x: None,
    "a value": lambda m, x: setattr(m.w, "value", m.w * 2.0 + 1.0),
    "a value in place": lambda m, x: m.child.w.__iadd__(1.0),
    "an integer value": lambda m, x: m.count.__iadd__(1),
    "values in containers": lambda m, x: (
        m.items[0].__imul__(3.0),
        m.parts["pair"].first.__iadd__(1.0),
    ),
    "a bare array": lambda m, x: setattr(m, "offset", m.offset - 1.0),
    "a value of another's": lambda m, x: setattr(m.w, "value", m.stat.value),
    "swapped values": lambda m, x: (
        lambda a, b: (setattr(m.w, "value", b), setattr(m.stat, "value", a))
    )(m.w.value, m.stat.value),
    "there and back": lambda m, x: (setattr(m, "mode", "eval"), setattr(m, "mode", "train")),
}

STRUCTURES = {
    "a static attribute": lambda m, x: setattr(m, "mode", "eval"),
    "a new static attribute": lambda m, x: setattr(m.child, "extra", ["a", 2, False]),
    "a deleted attribute": lambda m, x: delattr(m, "stat"),
    "a replaced Variable": lambda m, x: setattr(m, "stat", nnx.BatchStat(m.stat * 2.0)),
    "a new Variable": lambda m, x: setattr(m, "new", nnx.Param(m.w + 1.0, tag="n")),
    "a new bare array": lambda m, x: setattr(m.child, "array", m.w + 1.0),
    "a new node": lambda m, x: setattr(m, "node", Node(w=nnx.Param(m.w * 2.0), up=m)),
    "a shared Variable": lambda m, x: setattr(m.child, "stat", m.stat),
    "a shared node": lambda m, x: setattr(m, "twin", m.child),
    "no longer shared": lambda m, x: setattr(m.child, "w", nnx.Param(m.w.value)),
    "swapped attributes": lambda m, x: swap(m),
    "a detached part": lambda m, x: (m.items[0].__iadd__(1.0), delattr(m.child, "list"),
                                     setattr(m, "items", [])),  # fmt: skip
    "an appended item": lambda m, x: m.items.append(nnx.Param(m.w * 7.0)),
    "a popped item": lambda m, x: m.items.pop(0),
    "swapped items": lambda m, x: m.items.reverse(),
    "a new entry": lambda m, x: m.parts.update(z=m.w, y=(1, m.stat)),
    "a deleted entry": lambda m, x: m.parts.pop("a"),
    "reordered entries": lambda m, x: m.parts.update(a=m.parts.pop("a")),
    "a container in a container": lambda m, x: m.items.append({"deep": [m.w, "text"]}),
    "a new tuple": lambda m, x: m.parts.update(pair=Pair(m.parts["pair"].first, "other")),
    "metadata": lambda m, x: setattr(m.w, "tag", "other"),
    "new metadata and value": lambda m, x: (
        setattr(m.stat, "note", 1),
        setattr(m.stat, "value", m.stat * 2.0),
    ),
    "deleted metadata": lambda m, x: delattr(m.w, "tag"),
    "array for Variable": lambda m, x: setattr(m, "stat", m.stat.value),
    "Variable for array": lambda m, x: setattr(m, "offset", nnx.Param(m.offset)),
    "everything": lambda m, x: [change(m, x) for change in [
        *(VALUES[k] for k in ("a value", "an integer value", "values in containers")),
        *(STRUCTURES[k] for k in ("a new node", "an appended item", "metadata",
                                  "a static attribute", "a new entry", "a deleted attribute")),
    ]],
}  # fmt: skip
