"""The types of Variables, and the names under which collections know them."""

from __future__ import annotations

import copyreg
from functools import partial
from typing import Any

from .arguments import checked
from .errors import suggest
from .hooked_types import plain_type
from .metadata import GET_HOOK, SET_HOOK
from .variable import A, Variable, VariableType, make_variable

VariableMeta = VariableType
VariableState = Variable  # of older programs, whose States held something else than Variables


def without_hooks(x: Any) -> Any:
    """The same value in a Variable whose reading and writing runs no hook; others as they are."""
    if not isinstance(x, Variable) or not x._hooked:
        return x
    cls = Param if type(x)._class_hooked else type(x)
    return make_variable(cls, x._value, x._metadata.without(GET_HOOK).without(SET_HOOK))


class Param(Variable[A]):
    """A trainable parameter: what `nnx.grad` differentiates and `nnx.Optimizer` updates."""

    __slots__ = ()


class BatchStat(Variable[A]):
    """A running statistic, such as the mean and variance of BatchNorm."""

    __slots__ = ()


class Correction(Variable[A]):
    """What rounding took from the Variables beside it: zero where they come without it."""

    __slots__ = ()


class Cache(Variable[A]):
    """A cache kept between calls, such as the keys and values of decoding attention."""

    __slots__ = ()


class Intermediate(Variable[A]):
    """A value recorded on the way through a model by `Module.sow`."""

    __slots__ = ()


class Perturbation(Intermediate[A]):
    """A zero added to a value, so that its gradient is the gradient of that value."""

    __slots__ = ()


class RngState(Variable[A]):
    """Base of the state of a random stream."""

    __slots__ = ()


class RngCount(RngState[A]):
    """How many keys a stream has given: a uint32 scalar."""

    __slots__ = ()


class RngKey(RngState[A]):
    """The key of a stream: a typed JAX random key."""

    __slots__ = ()


class LoRAParam(Param[A]):
    """A parameter of a low-rank adapter."""

    __slots__ = ()


class OptState(Variable[A]):
    """Base of the state of an optimizer."""

    __slots__ = ()


class OptArray(OptState[A]):
    """An array of an optimizer's state that belongs to no parameter, such as a step count."""

    __slots__ = ()


class OptVariable(OptState[A]):
    """The part of an optimizer's state that belongs to one parameter, with its metadata."""

    __slots__ = ()


_TYPE_OF_NAME: dict[str, type[Variable]] = {
    "params": Param,
    "batch_stats": BatchStat,
    "cache": Cache,
    "intermediates": Intermediate,
    "perturbations": Perturbation,
}


@checked
def register_variable_name(
    name: str, typ: type[Variable] | None = None, *, overwrite: bool = False
) -> Any:
    """Bind a collection name to a Variable type; as a decorator when `typ` is left out."""
    if typ is None:
        return lambda cls: register_variable_name(name, cls, overwrite=overwrite)
    known = _TYPE_OF_NAME.get(name)
    if known is not None and known is not typ and not overwrite:
        raise ValueError(
            f"The name {name!r} already stands for {known.__name__}.\n"
            "Cure: take another name, or pass overwrite=True to bind this one to another type."
        )
    _TYPE_OF_NAME[name] = typ
    return typ


set_variable_name = register_variable_name


@checked
def variable_type_from_name(
    name: str, *, base: type[Variable] = Variable, allow_register: bool = False
) -> type[Variable]:
    """The Variable type of a collection name ('params' → Param), made if `allow_register`."""
    if name not in _TYPE_OF_NAME:
        if not allow_register:
            raise ValueError(
                f"variable_type_from_name: no Variable type has the name {name!r}; known: "
                f"{', '.join(_TYPE_OF_NAME)}.{suggest(name, _TYPE_OF_NAME)}\n"
                "Cure: register one with nnx.register_variable_name, or pass allow_register=True."
            )
        _TYPE_OF_NAME[name] = VariableType(name, (base,), {"__slots__": (), "_of_name": True})
    return _TYPE_OF_NAME[name]


def _pickled_type(cls: type[Variable]) -> Any:
    """A type that was made for a name stands in no module: it is pickled by that name."""
    if "_of_name" not in vars(cls):
        return cls.__qualname__
    base: Any = cls.__base__
    made = partial(variable_type_from_name, base=base, allow_register=True)
    return made, (cls.__name__,)


copyreg.pickle(VariableType, _pickled_type)  # type: ignore[arg-type]


@checked
def variable_name_from_type(typ: type[Variable], *, allow_register: bool = False) -> str:
    typ = plain_type(typ)
    names = {known: name for name, known in reversed(_TYPE_OF_NAME.items())}
    if typ not in names:
        if not allow_register:
            raise ValueError(
                f"{typ.__name__} has no registered name.\nCure: register one with "
                "nnx.register_variable_name, or pass allow_register=True."
            )
        register_variable_name(typ.__name__, typ)
    return names.get(typ, typ.__name__)
