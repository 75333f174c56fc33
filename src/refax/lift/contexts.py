"""Contexts: several `split`s and `merge`s that know of each other.

`split_context` numbers the objects that its splits meet. What an earlier split of the same context
met is not in the States of a later one, and `merge_context` puts the same object into both places.

`update_context` keeps that up over a function that is traced: what is split outside, merged inside,
changed, split inside and merged outside again comes back as changes to the objects outside. It is
the lift (`lift/inside.py`) in the user's own hands, for code that drives a JAX transform itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from ..graph.filters import Filter
from ..graph.graphdef import WITH_IDENTITY, GraphDef, homes
from ..graph.state import FlatState, from_flat_state, iter_leaves, to_flat_state
from ..graph.walk import walk
from ..objects.errors import describe_value, path_string
from ..objects.stack import Stack
from ..objects.variable import raw
from ..verbs.errors import leaf_missing
from ..verbs.names import get_path
from ..verbs.splitting import split
from .write_back import give_structure


@jax.tree_util.register_static
class ContextGraphDef(GraphDef):
    """A GraphDef that knows which objects of a context its records are.

    Args:
        graphdef: the structure.
        numbers: the number of the object, by record.
        elsewhere: the leaves that an earlier split of the context has.
        returns: from inside an update context: it describes the objects outside.
    """

    __slots__ = ("elsewhere", "numbers", "returns")

    def __init__(
        self,
        graphdef: GraphDef,
        numbers: tuple[int | None, ...],
        elsewhere: frozenset[int],
        returns: bool,
    ):
        super().__init__(graphdef.roots, graphdef.records, graphdef.arrays)
        self.numbers, self.elsewhere, self.returns = numbers, elsewhere, returns

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ContextGraphDef) and (
            (other.numbers, other.elsewhere, other.returns)
            == (self.numbers, self.elsewhere, self.returns)
            and super().__eq__(other) is True
        )

    __hash__ = GraphDef.__hash__


class _Side:
    """The objects that one side of a context knows, by number."""

    def __init__(self) -> None:
        self.objects: dict[int, Any] = {}
        self.numbers: dict[int, int] = {}  # by id; the objects are alive in the other dict
        self.split: set[int] = set()  # numbers that a split gave out

    def add(self, number: int, obj: Any) -> None:
        self.objects[number] = obj
        self.numbers[id(obj)] = number


class Context:
    """What the context managers give: `split` and `merge`, as `nnx.split` and `nnx.merge`."""

    def __init__(self, ctxtag: Any = None) -> None:
        self.ctxtag: Any = ctxtag
        self.tag: Any = ctxtag
        self._outside, self._inside = _Side(), _Side()
        self._count = 0

    def split(self, node: Any, /, *filters: Filter) -> Any:
        """(graphdef, state, …), the States without what earlier splits of the context gave."""
        graphdef, *states = split(node, *filters)
        walked = walk((node,))
        returns = any(id(obj) in self._inside.numbers for obj in walked.objects)
        side = self._inside if returns else self._outside
        earlier = set(side.split)
        numbers: list[int | None] = []
        for record, obj in zip(graphdef.records, walked.objects, strict=True):
            number = None
            if record[0] in WITH_IDENTITY:
                number = side.numbers.get(id(obj))
                if number is None:
                    number, self._count = self._count, self._count + 1
                    side.add(number, obj)
                side.split.add(number)
            numbers.append(number)
        elsewhere = frozenset(
            leaf for leaf, home in enumerate(homes(graphdef)[1]) if numbers[home.record] in earlier
        )
        hidden = {graphdef.paths.leaves[i] for i in elsewhere}
        if hidden:
            states = [
                from_flat_state([(p, x) for p, x in iter_leaves(s) if p not in hidden])
                for s in states
            ]
        return (ContextGraphDef(graphdef, tuple(numbers), elsewhere, returns), *states)

    def merge(
        self, graphdef: ContextGraphDef, state: Mapping[Any, Any], /, *states: Mapping[Any, Any]
    ) -> Any:
        """The object; objects that the context knows are taken, and given what has changed."""
        if not isinstance(graphdef, ContextGraphDef):
            raise TypeError(
                f"merge takes what `split` of a context returned, got "
                f"{describe_value(graphdef)}.\nCure: nnx.merge takes a plain GraphDef."
            )
        shape, numbers, elsewhere = graphdef, graphdef.numbers, graphdef.elsewhere
        side = self._outside if graphdef.returns else self._inside
        known = [None if n is None else side.objects.get(n) for n in numbers]
        values = {path: x for tree in (state, *states) for path, x in iter_leaves(tree)}
        leaves: list[Any] = []
        for i, (path, home) in enumerate(zip(shape.paths.leaves, homes(shape)[1], strict=True)):
            leaf = None if i in elsewhere else values.pop(path, None)
            if i in elsewhere and known[home.record] is not None:
                leaf = get_path(known[home.record], home.keys)
            if leaf is None:
                raise leaf_missing(path, 0)
            leaves.append(raw(leaf))
        if values:
            raise ValueError(
                f"merge: the State has `{path_string(next(iter(values)))}`, which is not "
                "in the GraphDef.\nCure: merge the States that were split with it."
            )
        objects = give_structure(shape, known, leaves)
        for number, obj in zip(numbers, objects, strict=True):
            if number is not None:
                side.add(number, obj)
        return objects[shape.roots[0]]

    def flatten(self, node: Any, *filters: Filter, with_paths: bool = True) -> Any:
        """As `split`, with FlatStates (or lists of leaves) for States."""
        graphdef, *states = self.split(node, *filters)
        flat = map(to_flat_state, states)
        return (graphdef, *(flat if with_paths else (f.leaves for f in flat)))

    def unflatten(self, graphdef: ContextGraphDef, flat_state: Any, /, *flat_states: Any) -> Any:
        """As `merge`, of what `flatten` gives."""
        paths = graphdef.paths
        present = [paths.leaves[i] for i in paths.order if i not in graphdef.elsewhere]
        states = [
            FlatState(zip(present, flat, strict=True)) if isinstance(flat, list) else flat
            for flat in (flat_state, *flat_states)
        ]
        return self.merge(graphdef, *states)


SplitContext = MergeContext = UpdateContext = Context


_OPEN = Stack()  # of the update contexts around here


@contextlib.contextmanager
def split_context(ctxtag: Any = None) -> Iterator[Context]:
    """Splits that share: `with nnx.split_context() as ctx: graphdef, state = ctx.split(node)`.

    Args:
        ctxtag: the tag of the `nnx.update_context` around it, whose context it is then.

    Example:
        >>> from refax import nnx
        >>> shared = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        >>> a, b = nnx.Dict(x=shared), nnx.Dict(y=shared)
        >>> with nnx.split_context() as ctx:
        ...     (def_a, state_a), (def_b, state_b) = ctx.split(a), ctx.split(b)
        >>> with nnx.merge_context() as ctx:
        ...     a, b = ctx.merge(def_a, state_a), ctx.merge(def_b, state_b)
        >>> a.x is b.y, len(state_b)
        (True, 0)
    """
    yield Context() if ctxtag is None else current_update_context(ctxtag)


@contextlib.contextmanager
def merge_context(ctxtag: Any = None, inner: bool | None = None) -> Iterator[Context]:
    """Merges that share: see `nnx.split_context`.

    Args:
        ctxtag: the tag of the `nnx.update_context` around it, whose context it is then.
        inner: accepted; the context knows by itself on which side a GraphDef was made.
    """
    yield Context() if ctxtag is None else current_update_context(ctxtag)


@contextlib.contextmanager
def update_context(tag: Any) -> Iterator[Context]:
    """Changes made inside a transform of JAX, brought back to the objects outside.

    Also a decorator of a function. Inside, `nnx.split_context(tag)` and `nnx.merge_context(tag)`
    are this context.

    Example:
        >>> import jax
        >>> from refax import nnx
        >>> @jax.jit
        ... def grow(graphdef, state):
        ...     node = ctx.merge(graphdef, state)
        ...     node.itself = node
        ...     return ctx.split(node)
        >>> node = nnx.Dict(a=nnx.Param(1.0))
        >>> with nnx.update_context("grow") as ctx:
        ...     _ = ctx.merge(*grow(*ctx.split(node)))
        >>> node.itself is node
        True
    """
    context = Context(tag)
    with _OPEN.during(context):
        yield context


def current_update_context(tag: Any) -> Context:
    """The context of the nearest `nnx.update_context(tag)` around here.

    Raises:
        ValueError: there is none.
    """
    for context in reversed(_OPEN.items):
        if context.tag == tag:
            return context
    tags = dict.fromkeys(repr(context.tag) for context in _OPEN.items)
    raise ValueError(
        f"There is no update context {tag!r} here; open: {', '.join(tags) or 'none'}.\n"
        f"Cure: with nnx.update_context({tag!r}): …"
    )
