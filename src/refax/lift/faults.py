"""What goes wrong with the inputs of a call, told in the caller's names.

JAX and XLA speak of the arguments of the function that refax gives them, `grouped[0][12]`, or of a
flat number. On the error path, and only there, `tell` finds what is wrong with an input (a tracer
that an earlier call left behind, a deleted or an abstract array, a buffer that is donated and used)
and says where it is; otherwise it puts the caller's names into JAX's own message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from ..objects.errors import clipped, describe_value, left_behind
from ..objects.placing import mesh_set
from ..objects.trace_errors import where
from .arguments import unbind
from .call import Call
from .places import inputs_of
from .write_back import is_array_like

# The parameters of the functions that JAX sees, and what follows them in its messages.
_NAME = r"(?:grouped|tree|carry)(?:\[(?:\d+|'[^']*')\])+"
_ARGUMENT = re.compile(rf"(?:(?<=rgument )|(?<=path is ))'?{_NAME}")
_ARGUMENTS = re.compile("(?<=the values of the arguments ).*")
_ABSTRACT = re.compile("valid JAX type|ShapeDtypeStruct")
_NOT_TOGETHER = re.compile("incompatible devices|should match the aval mesh|^memory_space of all")
_TRACED = re.compile(r"the function (\S+) at \S*[/\\]refax[/\\]\S+?:\d+ for ")
_RETURNED = re.compile(
    r"^function (\S+) at \S*[/\\]refax[/\\]\S+?:\d+ traced for (\w+) returned a value of type "
    r"<class '(.+)'> at output component ((?:\[1\])?\[0\])?(\S*), (?=which is not a valid)"
)
_SCALAR = "one boolean: jnp.any(x) or jnp.all(x); for each element, jnp.where or nnx.vmap."
_CURES = {  # of what JAX says of a function, and says clearly
    "grad requires real": "floating-point numbers, x.astype(jnp.float32); for integers without "
    "gradient allow_int=True, or leave them out by argnums=nnx.DiffState(0, filter).",
    "vmap must have at least one": "an axis for what is mapped, in_axes=(None, 0), or axis_size=….",
    "vmap got inconsistent sizes": "the size that the mapped axes have, or no axis_size.",
    "at vmap out_axes": "an axis for what differs along the mapped one: out_axes=0.",
    "scan got no values to scan over": "length=…, or something with an axis to scan over.",
    "scan got `length`": "the length that the scanned axes have, or no length.",
    "Pred must be a scalar, got ": _SCALAR,
    "cond_fun must return a boolean scalar": _SCALAR,
    "Index type must be an integer": "an integer, index.astype(int).",
    "lower and upper arguments to fori_loop": "two ints, or integer scalars of one dtype.",
    "jvp called with different": "for each primal a tangent of its shape.",
    "primal and tangent arguments": "tangents of the dtypes of the primals.",
    "Output from batched function": "arrays, numbers and objects; return nothing else.",
    "the function returned": "arrays, numbers and objects; set what is none on an object.",
}


def execute(call: Call, function: Callable, program: Callable, *inputs: Any) -> Any:
    """`program(*inputs)`, whose errors speak of the arguments of `function`."""
    try:
        return program(*inputs)
    except Exception as error:
        fault = tell(error, call, function)
        if fault is None:
            raise
        raise fault from error


def _arranged(grouped: Any, tree: Any) -> dict[str, Any]:
    """The parameters of what JAX was given: a pure function, or the body of a loop."""
    value = tree[0][0] if tree[0] else None
    return {"grouped": grouped, "tree": tree, "carry": (grouped, value)}


def tell(
    error: Exception, call: Call, function: Callable, donated: Sequence[bool] = ()
) -> Exception | None:
    """The error that says what is wrong with an input; None if `error` is to be raised.

    Its message then has the caller's names.

    Args:
        error: what JAX raised.
        call: its inputs.
        function: the user's.
        donated: whether an input is donated, in the order of `inputs_of`.
    """
    if not isinstance(error, (RuntimeError, TypeError, ValueError, OverflowError)):
        return None
    function = unbind(function)[0]  # its object is an argument of the call
    inputs = list(inputs_of(call, function))
    if isinstance(error, jax.errors.ConcretizationTypeError) or not error.args:
        fault = None  # the user's function: its inputs are right
    else:
        fault = _fault(inputs, error)
    fault = fault or _shared_and_donated(inputs, donated) or _apart(inputs, error, function)
    if fault is None and error.args and isinstance(error.args[0], str):
        count, places = len(call.values), [place for place, _ in inputs]
        tree = jax.tree.structure(call.tree).unflatten(places[count:])
        _put_names(error, function, _arranged(call.groups.take(places[:count]), tree))
        _put_cure(error, function)
    return fault


def _put_cure(error: Exception, function: Callable) -> None:
    """Say what to do about a common mistake, and of which function JAX speaks."""
    text = error.args[0]
    if found := _RETURNED.match(text):
        _, transform, kind, start, path = found.groups()
        place = ("ys" if start == "[1][0]" else "result") + path  # (the carry was looked at)
        rest = text[found.end() :]
        text = f"the function returned `{place}` of the type {kind} from {transform}, {rest}"
    text = text.replace("at vmap out_axes[0]", "at vmap out_axes")
    cure = next((cure for start, cure in _CURES.items() if text.startswith(start)), "")
    if cure and "\nCure: " not in text and len(error.args) == 1:
        error.args = (f"{text}\nIn the function {where(function)}.\nCure: {cure}",)


def _fault(inputs: Sequence[tuple[str, Any]], error: Exception) -> Exception | None:
    """The first input that cannot be used. Each tracer is tried, which raises if it is over."""
    for place, value in inputs:
        leaves = jax.tree.leaves(value)
        if any(map(_is_over, leaves)):
            return left_behind(place, value)
        if any(isinstance(x, jax.Array) and not isinstance(x, Tracer) and x.is_deleted()
               for x in leaves):  # fmt: skip
            return RuntimeError(
                f"The array in `{place}` ({describe_value(value)}) was deleted: it was donated to "
                "a call, through another object that holds the same array.\n"
                "Cure: give each object arrays of its own before donating: copy.deepcopy(model). "
                "(nnx.clone and nnx.split share arrays, which never change.)"
            )
        if _ABSTRACT.search(str(error)) and any(
            isinstance(x, jax.ShapeDtypeStruct) for x in leaves
        ):
            return TypeError(
                f"`{place}` ({describe_value(value)}) is abstract: it has a shape and a dtype, but "
                "no value.\n"
                "Cure: fill the object in first (nnx.load, nnx.update), or look at shapes only: "
                "nnx.eval_shape(f, …)."
            )
        if not all(map(is_array_like, leaves)):
            return TypeError(
                f"`{place}` holds {describe_value(value)}, which cannot be traced.\n"
                "Cure: an argument: static_argnames=…, or, if it has Variables, a class that is "
                "an nnx.Pytree; an attribute that `nnx.data` marked: a number or an array, or "
                "nnx.static(value)."
            )
    return None


def _is_over(value: Any) -> bool:
    if isinstance(value, Tracer):
        try:
            jax.lax.broadcast(value, (1,))
        except jax.errors.UnexpectedTracerError:
            return True
    return False


def _shared_and_donated(
    inputs: Sequence[tuple[str, Any]], donated: Sequence[bool]
) -> RuntimeError | None:
    """The error for a buffer that is given away and used by the same call."""
    known: dict[int, tuple[str, bool]] = {}
    for (place, value), gives in zip(inputs, donated, strict=False):
        for array in jax.tree.leaves(value):
            if not isinstance(array, jax.Array):
                continue
            before = known.setdefault(id(array), (place, gives))
            if before[0] != place and (gives or before[1]):
                first, second = (before[0], place) if before[1] else (place, before[0])
                return RuntimeError(
                    f"`{first}` is donated, but `{second}` holds the same array "
                    f"({describe_value(array)}), which the call uses too.\n"
                    "Cure: give each object arrays of its own: copy.deepcopy(model). (nnx.clone "
                    "and nnx.split share arrays, which never change.)"
                )
    return None


def _apart(
    inputs: Sequence[tuple[str, Any]], error: Exception, function: Callable
) -> ValueError | None:
    """The error for inputs that lie where no one program takes them all."""
    if not _NOT_TOGETHER.search(str(error)):
        return None
    found: dict[str, list[str]] = {}
    for place, value in inputs:
        for array in jax.tree.leaves(value):
            if isinstance(array, jax.Array) and getattr(array, "committed", False):
                found.setdefault(_lies(array.sharding), []).append(f"`{place}`")
    if not (mesh := mesh_set()).empty:
        found.setdefault(_lies(NamedSharding(mesh, PartitionSpec())), []).append("the mesh set")
    if len(found) < 2:
        return None
    listed = "".join(
        f"\n  {', '.join(places[:3])}{' …' if len(places) > 3 else ''}: {clipped(where, 150)}"
        for where, places in list(found.items())[:6]
    )
    return ValueError(
        f"What {where(function)} takes does not lie together, on the same devices, mesh, kind of "
        f"axes and memory:{listed}\n"
        "Cure: make the model under the mesh that it is used in, or bring it there: "
        "jax.device_put(model, nnx.get_named_sharding(model, mesh)); a single array by "
        "jax.device_put(x, sharding)."
    )


def _lies(sharding: Any) -> str:
    """The devices of a sharding, its mesh and its memory."""
    mesh, memory = getattr(sharding, "mesh", None), sharding.memory_kind
    ids = [] if isinstance(mesh, AbstractMesh) else sorted(d.id for d in sharding.device_set)
    on = f"device {ids[0]}" if len(ids) == 1 else f"devices {ids[0]} to {ids[-1]}" if ids else ""
    kinds = () if mesh is None else sorted({kind.name for kind in mesh.axis_types})
    of = f"{dict(mesh.shape)} of {' and '.join(kinds)} axes" if mesh is not None else ""
    host = "" if memory in (None, "device") else str(memory)
    return ", ".join(part for part in (on, of, host) if part)


def _put_names(error: Exception, function: Callable, arranged: dict[str, Any]) -> None:
    """Put the caller's names into a message of JAX that speaks of this call.

    Args:
        arranged: the parameters of what JAX was given, with the place of each input in its place.
    """
    text = error.args[0]
    traced = _TRACED.search(text)
    if traced is not None and traced[1] != getattr(function, "__name__", None):
        return  # of a call further out, which will tell it
    places: dict[str, str] = {}
    for parameter, part in arranged.items():
        for path, place in jax.tree_util.tree_leaves_with_path(part):
            places[parameter + jax.tree_util.keystr(path)] = place

    def name(found: re.Match[str]) -> str:
        quote = found[0][: found[0].startswith("'")]
        head, rest = found[0][len(quote) :], ""
        while head:
            if head in places:
                return quote + places[head] + rest
            cut = head.rpartition("[")[0]
            head, rest = cut, head[len(cut) :] + rest
        return found[0]

    text = _ARGUMENT.sub(name, text)
    text = _ARGUMENTS.sub(lambda found: re.sub(_NAME, name, found[0]), text)
    text = _TRACED.sub(lambda found: f"the function {where(function)} for ", text)
    error.args = (text, *error.args[1:])
