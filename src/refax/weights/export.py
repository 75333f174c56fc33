"""`export`: a function of a model as one artifact that `jax.export` runs, without refax.

What the artifact takes and gives is plain: arrays, dicts, lists, tuples. The arrays of the objects
lie *inside* as constants, or come *beside* as a dict by dotted names, the names of `state_dict` and
of the files of `nnx.save`; so a decode cache goes in, and comes back with what was written.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Number
from typing import Any

import jax

from ..graph.filters import Filter
from ..graph.state import State, to_pure_dict
from ..lift.arguments import unbind
from ..objects.arguments import Count, checked
from ..objects.entering import is_key
from ..objects.node import Node
from ..objects.variable import Variable, raw
from ..verbs.copying import clone
from ..verbs.updating import update
from .state_dict import state_dict


@checked
def export(
    function: Callable[..., Any],
    /,
    *args: Any,
    beside: Filter = False,
    polymorphic: Any = None,
    platforms: Sequence[str] | None = None,
    vjp_order: Count = 0,
    **kwargs: Any,
) -> bytes:
    """Serialize a function of objects: `jax.export.deserialize(...).call` runs it anywhere.

    Args:
        function: a model, a method of one, or a function that takes or captures objects.
        *args, **kwargs: an example of the call. Objects lend their arrays and are no arguments of
            the artifact; for all else shapes and dtypes count (`jax.ShapeDtypeStruct` will do).
        beside: which arrays of the objects are given at the call, as a first argument
            `{dotted name: array}`: a filter; none by default, `...` for all. Keys of random streams
            are given as their data. Where the function writes some of them, the artifact returns
            `(result, {dotted name: new value})`.
        polymorphic: symbolic shapes, as `jax.export.symbolic_args_specs` takes them: `"batch, ..."`
            for all arguments that are no objects, or a tuple of one (or None) for each positional.
        platforms: which ones it is for, `("cpu", "cuda", "tpu")`; the present one by default.
        vjp_order: how many times the artifact can be differentiated.

    Raises:
        ValueError: the function writes what lies inside, which would be lost; the names are told.
        TypeError: an object inside of a container, or in the result.
        ImportError: flatbuffers is not installed.

    Example:
        >>> from refax import nnx
        >>> import jax, jax.numpy as jnp
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> artifact = nnx.export(model, jnp.ones((1, 2)), polymorphic="batch, ...")
        >>> jax.export.deserialize(bytearray(artifact)).call(jnp.ones((5, 2))).shape
        (5, 3)
    """
    from jax import export as jax_export

    inner, owner = unbind(function)
    try:
        call = inspect.signature(inner).bind(*(args if owner is None else (owner, *args)), **kwargs)
    except TypeError as error:
        raise TypeError(_NO_CALL.format(error)) from None
    objects = {name: x for name, x in call.arguments.items() if _is_object(x)}
    others = [x for name, x in call.arguments.items() if name not in objects]
    if any(map(_is_object, jax.tree.leaves(others, is_leaf=_is_object))):
        raise TypeError(_IN_A_CONTAINER)
    for x in jax.tree.leaves(others):
        if not isinstance(x, Number) and not hasattr(x, "dtype"):
            raise TypeError(_NO_CALL.format(f"{x!r} is no array"))
    held = next(iter(objects.values())) if len(objects) == 1 else objects
    weights = _without_keys(state_dict(held, filter=beside)) if objects else {}

    def of_weights(weights: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        copy = clone(held)
        if weights:
            update(copy, _with_keys(weights, state_dict(copy)))
        before = state_dict(copy)
        parts = [copy] if len(objects) == 1 else copy.values()
        copies = {id(x): part for x, part in zip(objects.values(), parts)}
        rest = iter(args)
        result = inner(
            *[copies[id(x)] if _is_object(x) else next(rest) for x in call.args],
            **{n: copies[id(x)] if _is_object(x) else kwargs[n] for n, x in call.kwargs.items()},
        )
        after = state_dict(copy)
        written = {name: x for name, x in after.items() if before.get(name, x) is not x}
        if lost := [name for name in written if name not in weights]:
            raise ValueError(_lost(lost))
        result = jax.tree.map(_plain, result, is_leaf=_is_object)
        return (result, _without_keys(written)) if written else result

    plain = tuple(x for x in call.args if not _is_object(x))
    named = {name: x for name, x in call.kwargs.items() if not _is_object(x)}
    if polymorphic is not None:
        if not isinstance(polymorphic, str):
            polymorphic = (polymorphic, dict.fromkeys(named))
        plain, named = jax_export.symbolic_args_specs((plain, named), polymorphic)
    program = of_weights if weights else partial(of_weights, {})
    plain = (weights, *plain) if weights else plain
    exported = jax_export.export(jax.jit(program), platforms=platforms)(*plain, **named)
    try:
        return bytes(exported.serialize(vjp_order=vjp_order))
    except ImportError as error:
        raise ImportError(f"nnx.export: {error}\nCure: pip install flatbuffers.") from error


def _is_object(x: Any) -> bool:
    return isinstance(x, (Node, State, Variable))


def _plain(x: Any) -> Any:
    """What a part of the result is outside of refax."""
    if isinstance(x, Node):
        raise TypeError(_OBJECT_RETURNED.format(type(x).__name__))
    return to_pure_dict(x) if isinstance(x, State) else raw(x)


def _without_keys(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The same arrays, with the data of random keys in the place of keys."""
    return {n: jax.random.key_data(x) if is_key(x) else x for n, x in arrays.items()}


def _with_keys(arrays: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: jax.random.wrap_key_data(x, impl=jax.random.key_impl(like[name]))
        if is_key(like[name])
        else x
        for name, x in arrays.items()
    }


def _lost(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (
        f"nnx.export: the function writes {', '.join(map(repr, names[:5]))}{more}, which lies "
        "inside the artifact: what is written would be lost.\n"
        "Cure: beside=nnx.Cache (or another filter) for what is to come back; for dropout and "
        "batch statistics model.eval()."
    )


_NO_CALL = (
    "nnx.export: this is no example of a call: {}.\n"
    "Cure: nnx.export(model, x), with the arguments of a call; jax.ShapeDtypeStruct(shape, dtype) "
    "will do, and functools.partial holds what is no array."
)
_IN_A_CONTAINER = (
    "nnx.export: an object inside of a container is no argument that an artifact can have.\n"
    "Cure: pass each object as an argument of its own."
)
_OBJECT_RETURNED = (
    "nnx.export: the result has a {0}, and an artifact returns arrays.\n"
    "Cure: return nnx.state_dict(...) of it, or its arrays."
)
