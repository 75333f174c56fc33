"""`update` and `set_path`: values written into an object, all of them or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter, le, setitem
from typing import Any

import jax
import numpy as np

from .._jax_compat import TRACE
from ..graph.plan import Plan
from ..graph.rebuild import write_leaves
from ..graph.state import State
from ..graph.walk import key_name
from ..objects.arguments import checked, unfit
from ..objects.at_once import Write
from ..objects.entering import conformed
from ..objects.errors import StructureError, path_string, suggest
from ..objects.node import Node, attribute_write
from ..objects.trace_errors import mutation_error
from ..objects.variable import Variable, check_write, make_variable, metadata_writes
from .errors import Misfits
from .iteration import is_mutable, iter_children_of, set_child
from .layouts import object_plan
from .matching import Unknown, match, no_place, void_corrections
from .names import PathError, dotted_name, get_path, place_text, resolve
from .popping import sown_attribute


def update(node: Any, state: Any, /, *states: Any) -> None:
    """Write States into an object, in place: all of them or, on an error or Ctrl-C, nothing.

    Args:
        node: a Module, a Variable, or a container of them.
        state, *states: a `State`, a nested pure dict (as orbax restores one), or a mapping of names
            such as `{'blocks.3.attn.kernel': array}`; partial or whole. A shared Variable goes by
            each of its names. A *Variable* under a name that an object does not have yet becomes
            an attribute of it, as sown values do that were popped.

    Raises:
        ValueError: paths that the object does not have, or other shapes; all of them named.
        TraceContextError: the object belongs to an outer trace.

    Example:
        >>> from refax import nnx
        >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        >>> saved = {name: p.value for name, p in model.named_parameters()}
        >>> saved["layers.0.bias"] += 1.0
        >>> nnx.update(model, saved)
        >>> model.layers[0].bias.value.tolist()
        [1.0, 1.0, 1.0]
    """
    update_with(node, (state, *states), ())


def update_with(node: Any, states: Iterable[Any], also: Sequence[Write]) -> None:
    """`update`, and the writes `also` at once with it."""
    plan = object_plan(node, "update")
    graphdef, variables = plan.graphdef, plan.variables
    pending: list[tuple[int, Any]] = []
    added: list[tuple[Any, Unknown]] = []
    misfits = Misfits("update")
    for tree in states:
        of_variable = bool(variables) and node is variables[0]
        if not isinstance(tree, (Mapping, Variable, Node)) and not of_variable:
            cure = "nnx.update(object, state), with a State as nnx.state(object) returns it."
            raise unfit(tree, "a State or nested dicts", cure)
        matched, unknown = match(graphdef, tree, misfits)
        pending += matched
        new = [(_holder_of_new(node, x, plan, matched), x) for x in unknown]
        added += [(holder, x) for holder, x in new if holder is not None]
        no_place(misfits, graphdef, [x for holder, x in new if holder is None])
    old = plan.gather()
    zero = void_corrections(graphdef, (i for i, _ in pending))
    pending += [(i, jax.numpy.zeros_like(old[i])) for i in zero]
    leaves = [i for i, _ in pending]
    present = [old[i] for i in leaves]
    values = [x._value if isinstance(x, Variable) else x for _, x in pending]
    if not _alike(present, values):
        values = [
            was if was is new else _in_place_of(was, given, graphdef.paths.leaves[i], misfits)
            for (i, given), was, new in zip(pending, present, values, strict=True)
        ]
    misfits.raise_if_any()
    check_writable(plan, node, leaves, "update", [holder for holder, _ in added])
    writes, count = [*also], len(variables)
    for i, given in pending:
        if isinstance(given, Variable) and i < count:
            cell, metadata = variables[i], given._metadata
            if metadata is not cell._metadata and metadata != cell._metadata:
                writes += metadata_writes(cell, metadata)
    for holder, new in added:
        cell = make_variable(type(new.value), new.value._value, new.value._metadata)
        name = sown_attribute(holder, new.path[-1])
        if isinstance(holder, Node):
            writes.append(attribute_write(holder, name, cell))
        else:
            writes.append(partial(setitem, holder, name, cell))
    write_leaves(plan, (node,), leaves, values, writes)


def check_writable(
    plan: Plan, node: Any, leaves: Sequence[int], action: str, also: Sequence[Any] = ()
) -> None:
    """Raise if a leaf of `node`, or an object of `also`, belongs to another trace."""
    trace, cells = TRACE.value, plan.variables
    count = len(cells)
    for cell in [cells[i] for i in leaves if i < count and cells[i]._trace is not trace]:
        check_write(cell, action)
    of_arrays = [node] if plan.graphdef.arrays and max(leaves, default=0) >= count else []
    for holder in (*of_arrays, *also):
        if isinstance(holder, Node) and holder._refax_trace is not trace:
            raise mutation_error(holder, action)


def _holder_of_new(node: Any, unknown: Unknown, plan: Plan, matched: list[tuple[int, Any]]) -> Any:
    """The object that gets a Variable without a place as a new attribute, if one does.

    Not where the name is nearly that of a Variable like it which the State leaves out: a misspelt
    one is an error.
    """
    path, value, above, found = unknown
    name = path[-1]
    if not isinstance(value, Variable) or len(path) != len(found) + 1 or not isinstance(name, str):
        return None
    holder = get_path(node, found)
    if not isinstance(holder, (Node, dict, State)) or name in dict(iter_children_of(holder)):
        return None
    given = {i for i, _ in matched}
    for key, i in above.items():
        if type(i) is int and i < len(plan.variables) and i not in given and suggest(name, [key]):
            other = plan.variables[i]
            if type(other) is type(value) and _shape(other._value) == _shape(value._value):
                return None
    return holder


def _in_place_of(old: Any, given: Any, path: tuple, misfits: Misfits) -> Any:
    """What is given as it replaces `old`: of its form where it has one."""
    boxed = isinstance(given, Variable)
    new = given._value if boxed else _like(old, given)
    try:
        # A bare array of NumPy in an attribute is replaced by what is given.
        new = new if isinstance(old, np.ndarray) and not boxed else conformed(new, old, path)
    except StructureError as error:
        line, _, cure = str(error).partition("\nCure: ")
        misfits.add(cure.rstrip("."), line)
    # A pytree, such as a quantized array, may come where an array was.
    place = f"`{path_string(path)}`"
    pytree = boxed or not isinstance(new, (dict, list))
    if _shape(old) not in (None, _shape(new)) and not (
        pytree and not jax.tree_util.all_leaves((new,))
    ):
        misfits.unlike(place, old, given._value if boxed else given, _RESIZE)
    return new


_RESIZE = (
    "make the object with the same sizes as the State came from; to replace the array by one of "
    "another shape on purpose, assign it: `variable.value = new`"
)


_AVAL, _COMMITTED = map(attrgetter, ("aval", "committed"))  # JAX makes equal avals once


def _alike(old: list[Any], new: list[Any]) -> bool:
    """Whether all are arrays of the same forms, as they nearly always are: asked in C."""
    try:
        return list(map(_AVAL, old)) == list(map(_AVAL, new)) and (
            not any(map(_COMMITTED, old))
            or all(map(le, map(_COMMITTED, old), map(_COMMITTED, new)))
        )
    except (AttributeError, TypeError):  # something else; a tracer
        return False


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)


def _like(old: Any, new: Any) -> Any:
    """`new` in the containers of `old`, where a checkpoint turned tuples into lists or dicts."""
    treedef = jax.tree.structure(old)
    if jax.tree_util.all_leaves((old,)) or treedef == jax.tree.structure(new):
        return new
    of_path = _by_text(new)
    if of_path.keys() == _by_text(old).keys():
        return treedef.unflatten([of_path[path] for path in _by_text(old)])
    leaves = jax.tree.leaves(new)
    return treedef.unflatten(leaves) if len(leaves) == treedef.num_leaves else new


def _by_text(tree: Any) -> dict[tuple[str, ...], Any]:
    """The leaves of a pytree by paths, in which a name and an index are their text."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(str(key_name(key)) for key in path): leaf for path, leaf in pairs}


@checked
def set_path(node: Any, path: str | Sequence[Any], value: Any) -> None:
    """Put `value` in the place of what stands at a path: the assignment, by name.

    `nnx.set_path(model, 'blocks.3.attn', new)` is `model.blocks[3].attn = new`. Shared modules are
    replaced in this one place only. An array for a Variable becomes its value.

    Raises:
        PathError: nothing is there, or it stands in a tuple or another immutable container.
        StructureError: an array of another shape than the Variable's.

    Example:
        >>> from refax import nnx
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=rngs), nnx.Linear(2, 2, rngs=rngs))
        >>> for name, module in model.named_modules():
        ...     if isinstance(module, nnx.Linear):
        ...         nnx.set_path(model, name, nnx.LoRALinear(module, rank=1, rngs=rngs))
        >>> type(model.layers[1]).__name__
        'LoRALinear'
        >>> nnx.set_path(model, "layers.1.bias", nnx.state(model).layers[0].bias.value + 1.0)
        >>> model.layers[1].bias.value.tolist()
        [1.0, 1.0]
    """
    keys, values = resolve(node, path, "set_path")
    if not keys:
        raise PathError(
            "nnx.set_path: an empty path is the object itself, which cannot be replaced.\n"
            "Cure: assign the new object to your own name for it."
        )
    parent, old = values[-2:]
    if isinstance(old, Variable) and not isinstance(value, (Variable, Node, str, type(None))):
        misfits = Misfits("set_path")
        new = _in_place_of(old._value, value, keys, misfits)
        misfits.raise_if_any()
        old.set_raw_value(new)
        return
    if not is_mutable(parent):
        raise PathError(
            f"nnx.set_path: {place_text(node, keys[:-1])} is a {type(parent).__name__}, whose "
            "parts cannot be replaced.\n"
            f"Cure: replace it as a whole, at {dotted_name(keys[:-1])!r}."
        )
    set_child(parent, keys[-1], value)
