"""What differs between two traces: found by comparing structures and statics, not their print.

A record of a trace says, for each place (`model.layers[3].dropout.deterministic`, `x[0]`), what
stood there: a `Fact`, with what two traces are compared by and what is printed of it. Where two
facts differ but look the same in print (two configurations with one `repr`, two lambdas),
`tell_apart` goes into them until it finds something that shows.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.core import Tracer
from jax.sharding import PartitionSpec

from .._jax_compat import mesh_around
from ..graph.graphdef import GraphDef
from ..lift.arguments import is_slot
from ..lift.closures import content
from ..lift.errors import argument_place, place_under
from ..lift.places import Fact, outline, said
from ..objects.modes import using_scopes
from ..objects.placing import get_logical_axis_rules
from ..objects.representation import short
from ..objects.statics import FunctionKey, frozen
from ..objects.trace_errors import where
from ..verbs.scopes import goes_on

NOTHING = "nothing"
_INTO = (tuple, functools.partial)  # what differs in them is shorter than they are
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
# Settings of JAX that are part of what it compiled a function for.
_SETTINGS = """
    jax_enable_x64 jax_default_matmul_precision jax_numpy_dtype_promotion jax_numpy_rank_promotion
    jax_default_device jax_debug_nans jax_debug_infs jax_disable_jit jax_default_prng_impl
    jax_threefry_partitionable jax_softmax_custom_jvp jax_enable_custom_prng
""".split()


class Difference(NamedTuple):
    """One thing that differs between two traces."""

    path: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.path}: {self.old} → {self.new}"

    @property
    def adds_or_removes(self) -> bool:
        return NOTHING in (self.old, self.new)

    @property
    def subject(self) -> str:
        """What keeps changing: the path, or the container in which entries come and go."""
        if self.adds_or_removes and self.path.endswith("]"):
            return self.path.rpartition("[")[0]
        return self.path


class TraceRecord:
    """What one trace was made for. Noted in full, put into words only when somebody compares.

    Args:
        graphdef: of the objects.
        roots: the place of each root.
        values: the leaves' values.
        tree: (args, kwargs) with slots.
        labels: the names of the positional arguments.
        statics: static arguments by name.
        places: where the inputs are, by place; told where nothing else differs.
    """

    def __init__(
        self,
        graphdef: GraphDef,
        roots: Sequence[str],
        values: Sequence[Any],
        tree: Any,
        labels: Sequence[str],
        statics: Mapping[str, Any],
        places: Mapping[str, Fact],
    ):
        self._places = places
        self._graphdef = graphdef
        self._roots = roots
        self._labels = labels
        self._values = [jax.tree.map(jax.typeof, value) for value in values]
        self._tree = jax.tree.map(jax.typeof, tree)
        self._statics = dict(statics)
        self._settings = {name: getattr(jax.config, name, None) for name in _SETTINGS}
        self._settings["mesh"] = mesh_around()
        self._settings["logical axis rules"] = get_logical_axis_rules()
        self._settings["names of Modules (nnx.use_scopes)"] = using_scopes()
        self._settings["called by a Module inside of a trace"] = goes_on()

    @functools.cached_property
    def parts(self) -> tuple[dict[str, Fact], ...]:
        """{place: fact} of structure, containers, static arguments, settings, and arrays."""
        paths = self._graphdef.paths.leaves
        arrays = {
            place_under(path, self._roots): said(_form(value))
            for path, value in zip(paths, self._values, strict=True)
        }
        for path, aval in jax.tree_util.tree_leaves_with_path(self._tree):
            arrays[argument_place(path, self._labels)] = said(_form(aval))
        statics = {name: Fact(frozen(v), short(v), v) for name, v in self._statics.items()}
        settings = {name: Fact(v, short(v)) for name, v in self._settings.items()}
        structure = outline(self._graphdef, self._roots)
        return structure, dict(self._containers()), statics, settings, arrays

    def _containers(self) -> Iterator[tuple[str, Fact]]:
        """The containers among the arguments, and what else is static in them."""
        args, kwargs = self._tree
        pending = [*zip(self._labels, args, strict=True), *kwargs.items()]
        while pending:
            place, value = pending.pop()
            if is_slot(value):
                root = self._roots[value.number]
                if root != place:
                    yield place, Fact(root, f"`{root}`")
                continue
            pairs, one_level = jax.tree_util.tree_flatten_with_path(
                value, is_leaf=lambda x, container=value: x is not container
            )
            if (data := one_level.node_data()) is not None:  # no leaf
                cls, static = data
                static = None if cls in (list, tuple, dict) else static
                text = "None" if cls is type(None) else cls.__name__
                yield place, Fact((cls, static), text, static)
                pending += [(place + jax.tree_util.keystr(key), child) for key, child in pairs]

    def differences(self, earlier: TraceRecord) -> list[Difference]:
        found: dict[str, Difference] = {}
        for old, new in zip(earlier.parts, self.parts, strict=True):
            for difference in differences_between(old, new):
                known = found.setdefault(difference.path, difference)
                if known.adds_or_removes and difference.adds_or_removes:
                    # That there is an array; now also its form.
                    pairs = zip(known, difference, strict=True)
                    texts = [known if now == NOTHING else now for known, now in pairs]
                    found[difference.path] = Difference(*texts)
        return [*found.values()] or differences_between(earlier._places, self._places)


def differences_between(old: Mapping[str, Fact], new: Mapping[str, Fact]) -> list[Difference]:
    """What differs between the facts of two traces, by place."""
    found = (difference_between(p, old.get(p), new.get(p)) for p in {**new, **old})
    return [difference for difference in found if difference is not None]


def difference_between(place: str, old: Fact | None, new: Fact | None) -> Difference | None:
    if old is None or new is None:
        return Difference(place, old.text if old else NOTHING, new.text if new else NOTHING)
    if _equal(old.key, new.key):
        return None
    texts = old.text, new.text
    into = dataclasses.is_dataclass(old.value) or isinstance(old.value, _INTO)
    if into or texts[0] == texts[1] or _ADDRESS.search("".join(texts)):
        return tell_apart(place, old.value, new.value)
    return Difference(place, *texts)


def _equal(old: Any, new: Any) -> bool:
    try:
        return bool(old == new)
    except Exception:
        return False


def tell_apart(place: str, old: Any, new: Any) -> Difference:
    """How two values differ that are not equal, in words that differ."""
    old, new = (x.function if isinstance(x, FunctionKey) else x for x in (old, new))
    same_type = type(old) is type(new)
    comparable = same_type and not (
        isinstance(old, types.FunctionType) and old.__code__ != new.__code__
    )
    parts, new_parts = (_parts(x) if comparable else {} for x in (old, new))
    if [*parts] == [*new_parts]:
        for below, part in parts.items():
            if not _equal(frozen(part), frozen(new_parts[below])):
                return tell_apart(place + below, part, new_parts[below])
    texts = [short(x) for x in (old, new)]
    if texts[0] != texts[1] and not _ADDRESS.search("".join(texts)):
        return Difference(place, *texts)
    if not same_type:
        texts = [_kind(x) for x in (old, new)]
        other = texts[1] if texts[0] != texts[1] else "of another type of that name"
        return Difference(place, texts[0], other)
    name = type(old).__name__
    if isinstance(old, types.FunctionType):
        texts = [where(x) for x in (old, new)]
        return Difference(place, texts[0], texts[1] if texts[0] != texts[1] else "another of the "
                          "same place")  # fmt: skip
    if isinstance(old, types.MethodType):
        owner = type(old.__self__).__name__
        return Difference(place, f"`{old.__name__}` of a {owner}", f"of another {owner}")
    how = "by identity" if type(old).__eq__ is object.__eq__ else f"by {name}.__eq__"
    return Difference(place, f"a {name}", f"another {name}, which is not equal, compared {how}")


def _kind(value: Any) -> str:
    return f"{short(value)} (a {type(value).__module__}.{type(value).__qualname__})"


def _parts(value: Any) -> dict[str, Any]:
    """{what is put behind the place: part}."""
    if dataclasses.is_dataclass(value):
        return {f".{f.name}": getattr(value, f.name, None) for f in dataclasses.fields(value)}
    if isinstance(value, types.FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=False)
        return {
            " (defaults)": value.__defaults__,
            " (defaults by name)": value.__kwdefaults__,
            **{f" (closes over `{name}`)": content(cell) for name, cell in cells},
        }
    if isinstance(value, functools.partial):
        return {".func": value.func, ".args": value.args, ".keywords": value.keywords}
    if isinstance(value, types.MethodType):
        return {"": value.__func__}
    if isinstance(value, (tuple, list)):
        return {f"[{i}]": part for i, part in enumerate(value)}
    return {f"[{key!r}]": part for key, part in value.items()} if isinstance(value, dict) else {}


def placement(value: Any) -> str:
    """Where an input is, as far as JAX compiles for it."""
    found = []
    for array in jax.tree.leaves(value):
        if not isinstance(array, jax.Array) or isinstance(array, Tracer):
            found.append("traced" if isinstance(array, Tracer) else "on the host")
            continue
        sharding = array.sharding
        if (spec := getattr(sharding, "spec", None)) is not None:
            said = max((i for i, axes in enumerate(spec, 1) if axes is not None), default=0)
            text = f"{PartitionSpec(*spec[:said])}"  # as JAX compares them: the rest is whole
        else:
            text = ", ".join(sorted(str(device) for device in sharding.device_set))
        kind = sharding.memory_kind
        if kind not in (None, "device", "unpinned_host"):
            text += f" in {kind}"
        found.append(text + ("" if getattr(array, "committed", True) else " (not committed)"))
    return found[0] if len(found) == 1 else f"{found}"


def _form(avals: Any) -> str:
    leaves, structure = jax.tree.flatten(avals)
    shown = []
    for aval in leaves:
        weak = " (a Python scalar)" if getattr(aval, "weak_type", False) else ""
        spec = getattr(getattr(aval, "sharding", None), "spec", None)
        typed = f" {spec}" if spec and any(x is not None for x in spec) else ""
        shown.append(f"{aval.dtype}[{','.join(map(str, aval.shape))}]{typed}{weak}")
    return shown[0] if len(shown) == 1 else f"{structure.unflatten(shown)}"
