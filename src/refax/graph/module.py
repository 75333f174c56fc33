"""Pytree and Module: plain Python objects whose attributes make up an object graph.

A Pytree keeps refax's own bookkeeping in slots, so `vars(model)` shows the user's attributes and
nothing else. Writing an attribute does two things besides: it checks that the object belongs to the
current trace, and, if a plan knows the object, tells it of a change of structure.

What an attribute is follows from its value (node, Variable, array, container: data; anything else:
static). `nnx.data(x)` and `nnx.static(x)`, or the annotations `nnx.Data[T]` and `nnx.Static[T]`,
overrule that.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from typing_extensions import dataclass_transform

from .._jax_compat import TRACE
from .errors import suggest
from .trace_errors import mutation_error
from .variable import Param, Perturbation, Variable, variable_type_from_name
from .watch import invalidate, keeps_structure

T = TypeVar("T")
M = TypeVar("M", bound="Module")


class _Mark:
    """A value on its way into an attribute, with "data" or "static" said about it."""

    __slots__ = ("kind", "value")

    def __init__(self, kind: str, value: Any):
        self.kind = kind
        self.value = value


Data = typing.Annotated[T, "refax: data"]
Static = typing.Annotated[T, "refax: static"]


def _mark(kind: str, value: Any, field: dict[str, Any]) -> Any:
    if value is not ...:
        return _Mark(kind, value)
    metadata = {**field.pop("metadata", {}), "refax": kind}
    return dataclasses.field(metadata=metadata, **field)


def data(value: Any = ..., **field: Any) -> Any:
    """Mark an attribute as data: `self.scale = nnx.data(2.0)` makes the number a leaf.

    In a dataclass body, with the keywords of `dataclasses.field`: `scale: float = nnx.data()`.
    """
    return _mark("data", value, field)


def static(value: Any = ..., **field: Any) -> Any:
    """Mark an attribute as static: it is compared between calls, not traced; must be hashable.

    In a dataclass body, with the keywords of `dataclasses.field`: `sizes: tuple = nnx.static()`.
    """
    return _mark("static", value, field)


def class_marks(cls: type[Pytree]) -> Mapping[str, str]:
    """Which attributes the annotations and fields of a class mark, worked out once a class."""
    marks = cls.__dict__.get("_refax_class_marks")
    if marks is None:
        marks = _find_class_marks(cls)
        cls._refax_class_marks = marks
    return marks


def _find_class_marks(cls: type) -> dict[str, str]:
    marks: dict[str, str] = {}
    for name, hint in _annotations(cls):
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, str) and extra.startswith("refax: "):
                marks[name] = extra.removeprefix("refax: ")
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            if "refax" in field.metadata:
                marks[field.name] = field.metadata["refax"]
    return marks


def _annotations(cls: type) -> Iterator[tuple[str, Any]]:
    for base in reversed(cls.__mro__):
        if base is not object and base.__module__ != "typing":
            for name, hint in vars(base).get("__annotations__", {}).items():
                yield name, _named(base, hint) if isinstance(hint, str) else hint


def _named(cls: type, hint: str) -> Any:
    """`nnx.Data` of the text "nnx.Data[float]". What is in the brackets is left alone: it may name
    what only a type checker imports.
    """
    value: Any = sys.modules.get(cls.__module__)
    for name in hint.partition("[")[0].strip().split("."):
        value = getattr(value, name, None)
    return value


class Pytree:
    """Base of every object of a graph that is not a Variable or a plain container.

    A subclass is a JAX pytree (with value semantics: `jax.tree.map(f, obj)` is a new object) and a
    node of the object graph (with reference semantics in the nnx transforms).
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_refax_marks",
        "_refax_plans",
        "_refax_trace",
        "_refax_watch",
    )
    _refax_class_marks: typing.ClassVar[Mapping[str, str]]
    # Whether a `cached_property` writes attributes past `__setattr__`.
    _refax_hides_writes: typing.ClassVar[bool] = False

    def __init_subclass__(cls, pytree: bool | str = True, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        members = (member for base in cls.__mro__ for member in vars(base).values())
        cls._refax_hides_writes = any(isinstance(m, functools.cached_property) for m in members)
        if pytree:
            from .pytree import register

            register(cls)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return new_pytree(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._refax_trace is not TRACE.value:
            raise mutation_error(self, f"set the attribute `{name}` of")
        cls = type(value)
        if cls is _Mark:
            set_object_marks(self, {**(self._refax_marks or {}), name: value.kind})
            value = value.value
            self._refax_changed()
        elif self._refax_watch is not None:
            attributes = self.__dict__
            if name not in attributes or not keeps_structure(attributes[name], value):
                self._refax_changed()
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if self._refax_trace is not TRACE.value:
            raise mutation_error(self, f"delete the attribute `{name}` of")
        self._refax_changed()
        object.__delattr__(self, name)

    def _refax_changed(self) -> None:
        if self._refax_watch is not None:
            invalidate(self._refax_watch)
            set_object_watch(self, None)

    def __getstate__(self) -> Any:
        return dict(self.__dict__), self._refax_marks

    def __setstate__(self, state: Any) -> None:
        attributes, marks = state
        self.__dict__.update(attributes)
        set_object_marks(self, marks)

    def __deepcopy__(self, memo: dict) -> Any:
        from .verbs import deep_copy

        return deep_copy(self, memo)

    def __repr__(self) -> str:
        from .representation import represent

        return represent(self)

    def __treescope_repr__(self, path: Any, subtree_renderer: Any) -> Any:
        from .representation import treescope_constructor

        return treescope_constructor(self, dict(vars(self)), path, subtree_renderer)


# The slot descriptors, called as functions, go past `__setattr__` and its checks.
set_object_marks = Pytree.__dict__["_refax_marks"].__set__
set_object_plans = Pytree.__dict__["_refax_plans"].__set__
set_object_watch = Pytree.__dict__["_refax_watch"].__set__
_set_trace = Pytree.__dict__["_refax_trace"].__set__


def new_pytree(cls: type[Any]) -> Any:
    """An object of `cls` with no attributes, made in the current trace, with no `__init__`."""
    self = object.__new__(cls)
    _set_trace(self, TRACE.value)
    set_object_watch(self, None)
    set_object_plans(self, None)
    set_object_marks(self, None)
    return self


_SOWN = "sown:"


def sown_attribute(module: Pytree, name: str) -> str:
    """The attribute that keeps a sown value: `name`, unless that would hide a method."""
    return _SOWN + name if callable(getattr(type(module), name, None)) else name


def sown_path(path: tuple) -> tuple:
    """The path of a Variable with the name under which it was sown."""
    *above, name = path
    return (*above, name.removeprefix(_SOWN) if isinstance(name, str) else name)


@dataclass_transform(field_specifiers=(data, static, dataclasses.field))
def dataclass(cls: Any = None, **options: Any) -> Any:
    """`dataclasses.dataclass` for Pytrees: identity as equality, and refax's `repr`.

    Example:
        >>> from refax import nnx
        >>> @nnx.dataclass
        ... class Scale(nnx.Module):
        ...     factor: float = nnx.data()
        >>> nnx.state(Scale(2.0))["factor"]
        2.0
    """
    return dataclasses.dataclass(cls, **{"eq": False, "repr": False, **options})


class Module(Pytree):
    """Base of layers and models: parameters are made in `__init__`, any method is callable.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> class Scale(nnx.Module):
        ...     def __init__(self):
        ...         self.factor = nnx.Param(jnp.ones(()))
        ...
        ...     def __call__(self, x):
        ...         return self.factor * x
        >>> float(Scale()(3.0))
        3.0
    """

    __slots__ = ()

    def train(self, **attributes: Any) -> None:
        """Training mode everywhere below: `deterministic=False`, `use_running_average=False`."""
        attributes = {"deterministic": False, "use_running_average": False, **attributes}
        self.set_attributes(**attributes, raise_if_not_found=False)

    def eval(self, **attributes: Any) -> None:
        """Evaluation mode everywhere below: `deterministic=True`, `use_running_average=True`."""
        attributes = {"deterministic": True, "use_running_average": True, **attributes}
        self.set_attributes(**attributes, raise_if_not_found=False)

    def set_attributes(
        self, *filters: Any, raise_if_not_found: bool = True, **attributes: Any
    ) -> None:
        """Set attributes on every module below that has them (and matches one of the filters).

        Raises:
            ValueError: an attribute that no matching module has (`raise_if_not_found`).
        """
        from .filters import matches_any
        from .iteration import pytrees_below, visit

        matches = matches_any(filters)
        if matches is None:
            modules = pytrees_below(self)
        else:
            places = [(p, v) for p, v, done in visit(self) if not done and isinstance(v, Pytree)]
            modules = [v for path, v in places if matches(path, v)]
        remaining = set(attributes)
        of_class: dict[type, set[str]] = {}
        for module in modules:
            own, cls = module.__dict__, type(module)
            if cls not in of_class:
                of_class[cls] = {name for name in attributes if hasattr(cls, name)}
            inherited = of_class[cls]
            for name, value in attributes.items():
                if name in own or name in inherited:
                    remaining.discard(name)
                    if name not in own or own[name] is not value:
                        setattr(module, name, value)
        if remaining and raise_if_not_found:
            known = {n for m in pytrees_below(self) for n in m.__dict__}
            name = sorted(remaining)[0]
            raise ValueError(
                f"set_attributes: no module below {type(self).__name__} that the filters match has "
                f"the attribute {', '.join(map(repr, sorted(remaining)))}.{suggest(name, known)}\n"
                "Cure: set it in the module's __init__, or pass raise_if_not_found=False."
            )

    def iter_modules(self) -> Iterator[tuple[tuple, Module]]:
        """`nnx.iter_modules(self)`: every (path, Module) below."""
        from .iteration import iter_modules

        return iter_modules(self)

    def iter_children(self) -> Iterator[tuple[Any, Module]]:
        """`nnx.iter_children(self)`: every (name, Module) that is an attribute of this one."""
        from .iteration import iter_children

        return iter_children(self)

    def named_variables(self, filter: Any = ..., /) -> Iterator[tuple[str, Variable]]:
        """`nnx.named_variables(self, filter)`: `('blocks.3.attn.kernel', variable)`, …"""
        from .names import named_variables

        return named_variables(self, filter)

    def named_parameters(self) -> Iterator[tuple[str, Param]]:
        """`nnx.named_parameters(self)`: the `nnx.Param`s by dotted names."""
        from .names import named_parameters

        return named_parameters(self)

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """`nnx.named_modules(self)`: `('', self)`, `('blocks.3.attn', module)`, …"""
        from .names import named_modules

        return named_modules(self)

    def sow(
        self,
        variable_type: type[Variable] | str,
        name: str,
        value: Any,
        reduce_fn: Any = lambda old, new: (*old, new),
        init_fn: Any = tuple,
    ) -> bool:
        """Record a value on the way, in the Variable `self.<name>`; collect it with `nnx.pop`.

        Or with `nnx.capture`. Where a method has this name, the Variable stands beside the method;
        both find it under its name. In a vmap or scan that broadcasts the module, say along which
        axis its values are stacked: `in_axes=nnx.StateAxes({nnx.Intermediate: 0, ...: None})`.

        Args:
            variable_type: the type of the Variable, such as `nnx.Intermediate`, or its name.
            name: the attribute that holds it.
            value: any pytree of arrays.
            reduce_fn: (what is there, value) → what is kept; by default a growing tuple.
            init_fn: () → what is there before the first call.
        """
        attribute, cls, existing = _recording("sow", self, name, variable_type)
        if existing is None:
            setattr(self, attribute, cls(reduce_fn(init_fn(), value)))
        else:
            existing.value = reduce_fn(existing.value, value)
        return True

    def perturb(
        self, name: str, value: Any, variable_type: type[Variable] | str = Perturbation
    ) -> Any:
        """`value` plus the zero in `self.<name>`, whose gradient is the gradient of `value`.

        The first call makes the Variable, with the shape and dtype of `value`.
        """
        attribute, cls, existing = _recording("perturb", self, name, variable_type)
        if existing is None:
            existing = cls(jax.tree.map(jnp.zeros_like, value))
            setattr(self, attribute, existing)
        return jax.tree.map(jnp.add, value, existing.value)


def _recording(
    verb: str, module: Module, name: str, variable_type: type[Variable] | str
) -> tuple[str, type[Variable], Variable | None]:
    """The attribute to record in, the type of its Variable, and what is there already."""
    if isinstance(variable_type, str):
        variable_type = variable_type_from_name(variable_type, allow_register=True)
    attribute = sown_attribute(module, name)
    existing = vars(module).get(attribute)
    if existing is not None and not isinstance(existing, variable_type):
        raise ValueError(
            f"{verb}: `{type(module).__name__}.{name}` is a {type(existing).__name__}, not a "
            f"{variable_type.__name__}.\nCure: {verb} under another name."
        )
    return attribute, variable_type, existing
