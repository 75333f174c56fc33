"""Variable: a mutable cell with one value and some metadata.

Nouns. The *value* is any pytree of arrays, usually one array. *Metadata* is whatever else the user
said about the cell (`sharding=`, a tag, hooks). Identity matters: two references to a Variable are
one cell, and the graph verbs and transforms keep it so.

A cell may be written only in the trace that created it or that it entered as an argument
(`_trace`); anything else would leave a tracer behind in an object of the outside.

The working fields are slots, read and written past every property by the code that moves whole
models (`raw_value`/`set_raw_value` below); the public `value` adds the hooks and the check.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import repeat
from operator import attrgetter
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Generic, Self, overload

import jax
import numpy as np

from .._jax_compat import TRACE
from .at_once import Write, at_once, set_each
from .entering import ARRAYS, broadcasts, entered, with_part
from .hooked_types import has_hooks, plain_type, register_variable_type, type_with
from .metadata import EMPTY, GET_HOOK, SET_HOOK, SHARED, A, Metadata, VariableMetadata
from .modes import OF_VARIABLES as MODES
from .operators import LikeArray, add_operators
from .outer_reads import outer_read
from .pickling import copy_leaf, pack_leaf
from .placing import placed_by_annotation
from .representation import Form
from .snapshots import UNREAD, Snapshot, taken, written
from .torch_names import OF_AN_ARRAY, no_metadata, warn_of_metadata
from .trace_errors import mutation_error, name_of_new
from .watch import invalidate


class VariableType(type):
    """JAX calls the class with the fields of `register_dataclass`, which flattens in C++."""

    if not TYPE_CHECKING:  # where it would make every Variable an `Any`

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if "raw_metadata" in kwargs:
                return make_variable(cls, kwargs["value"], kwargs["raw_metadata"])
            kind = kwargs.get("type", args and args[0]) if cls is Variable else None
            if isinstance(kind, VariableType):  # a `VariableState(type, value)`
                named = {k: v for k, v in kwargs.items() if k != "type"}
                return kind(*[x for x in args if x is not kind], **named)
            return type.__call__(plain_type(cls), *args, **kwargs)


class Variable(LikeArray, Generic[A], metaclass=VariableType):
    """A mutable cell: one value and metadata.

    Args:
        value: any pytree of arrays; a `Variable` (its value and metadata are taken over); or the
            boxed value that a maker wrapped by `with_metadata` returns.
        **metadata: anything hashable; readable and writable as attributes. `sharding=`,
            `sharding_names=` and `out_sharding=` are the same annotation. The hooks `on_get_value`,
            `on_set_value`, `on_create_value`, `on_add_axis`, `on_remove_axis` are called with
            the Variable (and the value, or the axis index and name).

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> count = nnx.Variable(jnp.array(0), tag="steps")
        >>> count += 1
        >>> int(count), count.tag
        (1, 'steps')
    """

    __slots__ = ("__weakref__", "_hooked", "_metadata", "_trace", "_value", "_watch")

    _value: A
    _metadata: Metadata
    _class_hooked = _own_get = _own_set = False  # whether a subclass has hooks, overrides the two
    _plain: Any = None  # of a type that JAX flattens past its hooks: what it stands for

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._own_get = cls.get_value is not Variable.get_value
        cls._own_set = cls.set_value is not Variable.set_value
        hooks = hasattr(cls, GET_HOOK) or hasattr(cls, SET_HOOK)
        cls._class_hooked = hooks or cls._own_get or cls._own_set
        register_variable_type(cls)

    if not TYPE_CHECKING:  # as in the metaclass

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return make_variable(cls, None, EMPTY)

    @overload
    def __init__(self, value: VariableMetadata[A] | Variable[A], **metadata: Any): ...
    @overload
    def __init__(self, value: A, **metadata: Any): ...
    def __init__(self, value: Any, **metadata: Any):
        if isinstance(value, Variable):
            metadata = {**value._metadata, **metadata}
            value = _take(value)
        elif isinstance(value, VariableMetadata):
            metadata = {**value.metadata, **metadata}
            value = value.raw_value
        if metadata:
            for write in metadata_writes(self, Metadata(metadata)):
                write()
        value = entered(self.create_value(value))
        if "sharding" in self._metadata:
            eager = metadata.get("eager_sharding")
            name = partial(name_of_new, self)
            value = placed_by_annotation(value, self._metadata, name, eager)
        set_raw_value(self, value)

    # -- value ---------------------------------------------------------------------------------

    @property
    def value(self) -> A:
        """The value. Reading applies `on_get_value`; writing checks the trace and the set hook."""
        if self._hooked:
            return self.get_value() if self._own_get else self._read()
        return self._value

    @value.setter
    def value(self, new: A | Variable[A]) -> None:
        if type(new) in ARRAYS and not self._hooked and self._trace is TRACE.value:
            set_raw_value(self, new)
        elif self._own_set:
            self.set_value(new)  # type: ignore[arg-type]
        else:
            self._write(new)

    def _read(self) -> A:
        outer_read(self)
        if UNREAD:
            _was_read(self)
        hook = self._hook(GET_HOOK)
        return self._value if hook is None else hook(self._value)

    def _write(self, new: A | Variable[A]) -> None:
        check_write(self, "write the value of")
        if type(new) not in ARRAYS or self._hooked:
            new = _take(new) if isinstance(new, Variable) else new
            if self._hooked and (hook := self._hook(SET_HOOK)) is not None:
                new = hook(new)
            new = entered(new, self._value, self)
        set_raw_value(self, new)

    def create_value(self, value: Any) -> Any:
        """What a new Variable holds of the value that it is given; for subclasses to override."""
        create = self._hook("on_create_value")
        return value if create is None else create(value)

    raw_metadata: property = property(lambda self: self._metadata, doc="The metadata, in one.")

    def get_value(self, *, index: Any = ...) -> A:
        """The value, or a part; a subclass may override this: every read asks it then."""
        value: Any = self._read() if self._hooked else self._value
        return value if index is ... else value[index]

    def set_value(self, value: A, *, index: Any = ...) -> None:
        """Write the value, or a part. A subclass may override this: every write asks it then."""
        self._write(value if index is ... else self._with_part(index, value))

    def get_raw_value(self) -> A:
        """The value as stored, past hooks."""
        return _take(self)

    def set_raw_value(self, value: A) -> None:
        """Store a value as it is, past hooks."""
        check_write(self, "write the value of")
        set_raw_value(self, entered(value, self._value, self))

    raw_value: property = property(get_raw_value, set_raw_value)

    @overload
    def __getitem__(self, index: EllipsisType) -> A: ...
    @overload
    def __getitem__(self: Variable[jax.Array], index: Any) -> jax.Array: ...
    @overload
    def __getitem__(self, index: Any) -> Any: ...
    def __getitem__(self, index: Any) -> Any:
        return self.value if index is ... else self.get_value(index=index)

    def __setitem__(self, index: Any, value: Any) -> None:
        value = value.value if isinstance(value, Variable) else value
        if index is ... and broadcasts(value, self._value):
            value = with_part(self._value, index, value, self)
        if self._own_set:
            self.set_value(value, index=index)
        else:
            self.value = value if index is ... else self._with_part(index, value)

    def __delitem__(self, index: Any) -> None:
        updated: Any = copy.copy(self.value)
        del updated[index]
        self.value = updated

    def _with_part(self, index: Any, value: Any) -> Any:
        current: Any = Variable.get_value(self)
        if isinstance(current, (jax.Array, np.ndarray)):
            return with_part(current, index, value, self)
        updated = copy.copy(current)
        updated[index] = value
        return updated

    # -- metadata ------------------------------------------------------------------------------

    def get_metadata(
        self, name: str | None = None, *default: Any, exclude_required: bool | None = None
    ) -> Any:
        """All metadata as a dict, or the entry `name` (with a default); none is required."""
        if name is None:
            return dict(self._metadata)
        return self._metadata.get(name, *default) if default else self._metadata[name]

    def set_metadata(self, *args: Any, **metadata: Any) -> None:
        """`set_metadata(name, value)` or keywords: adds or changes entries; a mapping replaces."""
        if len(args) == 2:
            args, metadata = (), {args[0]: args[1]}
        present = Metadata(args[0]) if args else self._metadata
        self._replace_metadata(present.with_items(**metadata))

    def has_metadata(self, name: str) -> bool:
        return name in self._metadata

    def del_metadata(self, name: str) -> None:
        if name not in self._metadata:
            raise AttributeError(
                f"{type(self).__name__} has no metadata {name!r}; it has {list(self._metadata)}.\n"
                "Cure: ask with has_metadata first."
            )
        self._replace_metadata(self._metadata.without(name))

    def _replace_metadata(self, metadata: Metadata) -> None:
        check_write(self, "write the metadata of")
        if metadata != self._metadata:
            replace_metadata(self, metadata)

    def _hook(self, name: str) -> Callable | None:
        """The hook `name`, of this cell or its class, bound to the Variable."""
        hook = self._metadata.get(name)
        if hook is not None:
            return lambda *args: hook(self, *args)
        return object.__getattribute__(self, name) if hasattr(type(self), name) else None

    def add_axis(self, axis_index: int, axis_name: str | None) -> None:
        if (hook := self._hook("on_add_axis")) is not None:
            hook(axis_index, axis_name)

    def remove_axis(self, axis_index: int, axis_name: str | None) -> None:
        if (hook := self._hook("on_remove_axis")) is not None:
            hook(axis_index, axis_name)

    def __setattr__(self, name: str, value: Any) -> None:
        descriptor = getattr(type(self), name, None)
        if descriptor is not None and hasattr(descriptor, "__set__"):
            object.__setattr__(self, name, value)
        elif name.startswith("__"):  # such as the `__orig_class__` of typing
            raise AttributeError(name)
        else:
            if name in OF_AN_ARRAY and name not in self._metadata:
                warn_of_metadata(name)
            self._replace_metadata(self._metadata.with_items(**{name: value}))

    def __delattr__(self, name: str) -> None:
        self.del_metadata(name)

    def __getattr__(self, name: str) -> Any:
        # Reached only for names that the class does not have: metadata first, then the array's.
        if name in Variable.__slots__:
            raise AttributeError(name)
        # `sharding` is the annotation where it was given by this name, and else the array's.
        if name in (self._metadata.items_ if name == "sharding" else self._metadata):
            return self._metadata[name]
        if name in MODES:
            return MODES[name]
        if name.startswith("__"):  # protocols are looked up on the value only by the table
            raise AttributeError(name)
        try:
            return getattr(self.value, name)
        except AttributeError:
            raise no_metadata(self, name) from None

    # -- copies --------------------------------------------------------------------------------

    @property
    def type(self) -> type:
        return plain_type(type(self))

    @classmethod
    def from_metadata(cls, value: Any, attributes: Mapping[str, Any]) -> Self:
        """A Variable of this type with a value and metadata as `get_metadata()` gives it."""
        return make_variable(cls, entered(value), Metadata(attributes))

    def copy(self, value: Any = ..., **metadata: Any) -> Self:
        """A new cell of the same type, with another value or other metadata where given."""
        return self.replace(value, **metadata)

    def replace(self, value: Any = ..., **metadata: Any) -> Self:
        """A copy with another value and/or other metadata entries; a changed shape is fine."""
        if isinstance(value, Variable):
            if plain_type(type(value)) is not self.type:
                raise ValueError(
                    f"Cannot replace the value of a {type(self).__name__} by a "
                    f"{type(value).__name__}.\nCure: pass its `.value`."
                )
            metadata = {**value._metadata, **metadata}
            value = _take(value)
        merged = self._metadata.with_items(**metadata) if metadata else self._metadata
        value = _take(self) if value is ... else entered(value, self._value, self, dtype=False)
        return make_variable(type(self), value, merged)

    def copy_from(self, other: Variable[A]) -> None:
        """Take over value and metadata of a Variable of the same type."""
        if plain_type(type(other)) is not self.type:
            raise ValueError(
                f"Cannot copy a {type(other).__name__} into a {type(self).__name__}.\n"
                "Cure: copy the value alone: `variable.value = other.value`."
            )
        self.update_from_state(other)

    def update_from_state(self, variable_state: Variable[A]) -> None:
        check_write(self, "write the value of")
        same = variable_state._metadata == self._metadata
        metadata = [] if same else metadata_writes(self, variable_state._metadata)
        value = entered(_take(variable_state), self._value, self)
        at_once([partial(set_raw_value, self, value), *metadata])

    def to_state(self, value: Any = ...) -> Self:
        return self.copy(value)

    def __copy__(self) -> Self:
        return self.copy()

    def __deepcopy__(self, memo: dict[Any, Any]) -> Self:
        new = make_variable(type(self), None, copy.deepcopy(self._metadata, memo))
        memo[id(self)] = new
        set_raw_value(new, jax.tree.map(copy_leaf, _take(self)))
        return new

    def __reduce__(self) -> Any:
        return (make_variable, (self.type, jax.tree.map(pack_leaf, _take(self)), self._metadata))

    # -- standing in for an array --------------------------------------------------------------

    # NumPy's operators then leave `array * variable` to the Variable, as they do for a jax.Array.
    __array_priority__ = 100

    def __jax_array__(self) -> Any:
        return self.value

    def _refax_form(self) -> Form:
        items = [("value", _take(self)), *self._metadata.items()]
        return Form(type(self).__name__ + "(", items, values=(self._value,))


# The slot descriptors, called as functions, are the fast way past `__setattr__`.
raw_value: Callable[[Variable], Any] = Variable.__dict__["_value"].__get__
set_raw_value: Callable[[Variable, Any], None] = Variable.__dict__["_value"].__set__
_set_metadata = Variable.__dict__["_metadata"].__set__
set_trace = Variable.__dict__["_trace"].__set__
set_watch: Callable[[Variable, Any], None] = Variable.__dict__["_watch"].__set__
_set_hooked = Variable.__dict__["_hooked"].__set__

add_operators(Variable)
register_variable_type(Variable)


def make_variable(cls: type[Any], value: Any, metadata: Metadata) -> Any:
    """A Variable with this raw value, made in the current trace, with no `__init__` and no hook."""
    cls = type_with(cls, metadata)
    self = object.__new__(cls)
    set_raw_value(self, value)
    _set_metadata(self, metadata)
    set_trace(self, TRACE.value)
    set_watch(self, None)
    _set_hooked(self, cls._class_hooked or (metadata is not EMPTY and has_hooks(cls, metadata)))
    return self


def copies(variables: list[Any], snapshot: Snapshot | None = None) -> list[Any]:
    """New cells with the types, values and metadata of these: `make_variable` of many, in C.

    Those of a snapshot tell if they are written to no purpose.
    """
    cells: list[Any] = list(map(_new, map(type, variables)))
    set_each(set_raw_value, cells, map(_value_of, variables))
    set_each(_set_metadata, cells, map(_metadata_of, variables))
    set_each(set_trace, cells, repeat(snapshot or TRACE.value))
    set_each(set_watch, cells, repeat(None))
    hooked = list(map(_hooked_of, variables))
    if any(hooked):  # or its reads are watched
        hooked = [has_hooks(type(cell), cell._metadata) for cell in cells]
        for i, variable in enumerate(variables):
            if SHARED in variable._metadata and variable._trace is TRACE.value:
                cells[i], hooked[i] = variable, True
    set_each(_set_hooked, cells, hooked)
    return cells


_new = object.__new__
_value_of, _metadata_of, _hooked_of = map(attrgetter, ("_value", "_metadata", "_hooked"))


def trace_of(self: Variable) -> Any:
    """The trace that a Variable belongs to."""
    trace = self._trace
    return trace.trace if isinstance(trace, Snapshot) else trace


def check_write(self: Variable, action: str) -> None:
    """Before a write: the Variable must belong to the current trace.

    Raises:
        TraceContextError: it belongs to another trace. Not raised for the first write to a
            Variable of a snapshot, which is noted.
    """
    snapshot = self._trace
    if snapshot is TRACE.value:
        return
    if not isinstance(snapshot, Snapshot) or snapshot.trace is not TRACE.value:
        raise mutation_error(self, action)
    set_trace(self, snapshot.trace)
    if not snapshot.settled:
        _set_hooked(self, True)
        written(self, snapshot)


def _was_read(self: Any) -> None:
    if (write := UNREAD.pop(id(self), None)) is not None:
        set_trace(self, write.snapshot)  # the next write is noted again
        _set_hooked(self, has_hooks(type(self), self._metadata))


def _take(self: Variable) -> Any:
    """The stored value, for use elsewhere."""
    if UNREAD:
        _was_read(self)
    return self._value


def own_cell(self: Variable) -> Variable:
    """The Variable itself, at home in an object from now on, though it came in a snapshot."""
    if UNREAD:
        taken((self,))
    set_trace(self, trace_of(self))
    return self


def raw(leaf: Any) -> Any:
    """The stored value of a Variable; anything else as it is."""
    return leaf._value if isinstance(leaf, Variable) else leaf


def watch_reads(self: Variable, watched: bool) -> None:
    """Send reads past `outer_read`, by the way that a Variable with hooks takes; and back."""
    _set_hooked(self, watched or _hooked_by(self, self._metadata))


def _hooked_by(self: Variable, metadata: Metadata) -> bool:
    """Whether its values take the way of Variables with hooks, with this metadata."""
    return has_hooks(type(self), metadata) or (bool(UNREAD) and id(self) in UNREAD)


def metadata_writes(self: Variable, metadata: Metadata) -> list[Write]:
    """What sets the metadata, unchecked, for `at_once`; tells the plans."""
    if self._watch is not None:
        invalidate(self._watch)
    hooked = _hooked_by(self, metadata)
    return [
        partial(_set_metadata, self, metadata),
        partial(_set_hooked, self, hooked),
        partial(object.__setattr__, self, "__class__", type_with(type(self), metadata)),
        partial(set_watch, self, None),
    ]


@contextlib.contextmanager
def all_or_none(cells: Iterable[Variable]) -> Iterator[None]:
    """Give these Variables their values back, at once, if the block raises or is interrupted."""
    cells = list(cells)
    values = list(map(raw_value, cells))
    try:
        yield
    except BaseException:
        set_each(set_raw_value, cells, values)
        raise


def replace_metadata(self: Variable, metadata: Metadata) -> None:
    at_once(metadata_writes(self, metadata))
