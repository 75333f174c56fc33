"""Module: base of layers and models, which offers the verbs on objects as methods."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Never, TypeVar, overload

import jax
import jax.numpy as jnp

from ..graph.filters import matches_any
from ..objects.errors import TraceContextError
from ..objects.modes import Switch
from ..objects.torch_names import OF_A_MODULE, tell
from ..objects.type_names import T
from ..objects.variable import Variable
from ..objects.variable_types import Perturbation, variable_type_from_name
from .copying import clone
from .iteration import BEFORE, iter_graph, visit
from .merging import merge
from .names import dotted_name, named_parameters, named_variables
from .popping import pop, sown_attribute
from .pytree import Pytree
from .splitting import split, state
from .updating import update
from .views import assign

F = TypeVar("F")


def tuple_init() -> tuple[()]:
    """What `sow` starts with."""
    return ()


def tuple_reduce(xs: tuple[Any, ...], x: Any) -> tuple[Any, ...]:
    """How `sow` keeps what is recorded: one after the other."""
    return (*xs, x)


def iter_modules(module: Any, *, graph: Switch = None) -> Iterator[tuple[tuple[Any, ...], Module]]:
    """Every (path, Module) below, each once, children first, `module` itself last with path ()."""
    return ((path, value) for path, value in iter_graph(module) if isinstance(value, Module))


def iter_children(node: Pytree, *, graph: Switch = None) -> Iterator[tuple[Any, Module]]:
    """Every (name, Module) that is directly an attribute of `node`."""
    for name, value in sorted(vars(node).items()):
        if isinstance(value, Module):
            yield name, value


iter_module_children = iter_children


def named_modules(node: Any, /) -> Iterator[tuple[str, Module]]:
    """Every (dotted name, Module) below `node`, a module before those inside it, itself as `''`.

    Order, sharing and changes on the way as in `named_variables`.

    Example:
        >>> from refax import nnx
        >>> model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.relu)
        >>> [name for name, module in model.named_modules()]
        ['', 'layers.0']
    """
    found = [(p, v) for p, v, when in visit(node) if isinstance(v, Module) and when == BEFORE]
    return iter([(dotted_name(path), module) for path, module in found])


class _Verb:
    """A verb as a method of the objects of a class, which the class itself does not have.

    So it is in nobody's way: a dataclass field, a sown value, an attribute of the same name wins.
    """

    __slots__ = ("name", "verb")

    def __init__(self, verb: Callable[..., Any]):
        self.verb = verb

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, obj: Any, owner: type) -> Any:
        if obj is None:
            name = self.name
            raise AttributeError(name)
        return functools.partial(self.verb, obj)


if TYPE_CHECKING:
    # A verb may be something else in a subclass: a field, another method. pyright allows that to
    # what has no declared type, mypy to what is Any; and mypy alone finds no literal in `_MYPY`.
    _MYPY: bool = False

    @overload
    def _free(mypy: Literal[False], verb: F) -> F: ...
    @overload
    def _free(mypy: bool, verb: object) -> Any: ...
    def _free(mypy: bool, verb: Any) -> Any: ...


class Module(Pytree):
    """Base of layers and models: parameters are made in `__init__`, any method is callable.

    The verbs `split`, `state`, `update`, `pop` and `clone` are methods too, unless the Module has
    something of its own under that name.

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

    if TYPE_CHECKING:
        split, state, update = _free(_MYPY, split), _free(_MYPY, state), _free(_MYPY, update)
        pop, clone = _free(_MYPY, pop), _free(_MYPY, clone)
        merge = _free(_MYPY, staticmethod(merge))
    else:
        split, state, update = _Verb(split), _Verb(state), _Verb(update)
        pop, clone = _Verb(pop), _Verb(clone)
        merge = _Verb(lambda _, *given, **options: merge(*given, **options))

    def train(self, *mode: Never, **attributes: Any) -> None:
        """Training mode everywhere below: `deterministic=False`, `use_running_average=False`."""
        if mode:
            raise TypeError(
                f"{type(self).__name__}.train({mode[0]!r}): it takes no mode, as PyTorch's does.\n"
                "Cure: model.train() or model.eval(); one mode: model.eval(deterministic=False)."
            )
        self._set_modes({"deterministic": False, "use_running_average": False}, attributes)

    def eval(self, **attributes: Any) -> None:
        """Evaluation mode everywhere below: `deterministic=True`, `use_running_average=True`."""
        self._set_modes({"deterministic": True, "use_running_average": True}, attributes)

    def _set_modes(self, modes: dict[str, bool], more: dict[str, Any]) -> None:
        """Modes are for those who have them; what the caller names must be somewhere."""
        strict = more.pop("raise_if_not_found", True)
        if named := {k: v for k, v in more.items() if k not in modes}:
            assign(self, None, named, "set_attributes", strict)
        assign(self, None, {k: more.get(k, v) for k, v in modes.items()}, "set_attributes", False)

    def set_attributes(
        self, *filters: Any, raise_if_not_found: bool = True, **attributes: Any
    ) -> None:
        """Set attributes on every module below that has them (and matches one of the filters).

        Raises:
            ValueError: an attribute that no matching module has (`raise_if_not_found`).
        """
        assign(self, matches_any(filters), attributes, "set_attributes", raise_if_not_found)

    iter_modules, iter_children = iter_modules, iter_children
    named_variables, named_parameters = named_variables, named_parameters
    named_modules = named_modules

    def sow(
        self,
        variable_type: type[Variable] | str,
        name: str,
        value: Any,
        reduce_fn: Any = tuple_reduce,
        init_fn: Any = tuple_init,
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

        Returns:
            Whether it was recorded; an `nnx.capture` records the types that it asks for only.
        """
        return _record("sow", self, name, variable_type, value, reduce_fn, init_fn) is not None

    def perturb(self, name: str, value: T, variable_type: type[Variable] | str = Perturbation) -> T:
        """`value` plus the zero in `self.<name>`, whose gradient is the gradient of `value`.

        The first call makes the Variable, with the shape and dtype of `value`.
        """

        def zeros() -> Any:
            return jax.tree.map(jnp.zeros_like, value)

        zero = _record("perturb", self, name, variable_type, value, lambda old, _: old, zeros)
        return value if zero is None else jax.tree.map(jnp.add, value, zero)


tell(Module, OF_A_MODULE)
Module._refax_phase = "forward"  # of its subclasses: its own methods compute nothing

CAPTURES = "__captures__"  # the attribute in which `nnx.capture` puts Variables to record in


def _outside(verb: str, module: Module, name: str) -> TraceContextError:
    return TraceContextError(
        f"{verb}: `{type(module).__name__}` records {name!r} for nnx.capture inside of a transform "
        "whose function takes the Module from its surroundings, so that it cannot come out.\n"
        "Cure: pass the Module to the transform of nnx, as in nnx.remat(lambda m, x: m(x))(m, x); "
        "or leave it out with nnx.capture(…, filter=…)."
    )


def _record(
    verb: str,
    module: Module,
    name: str,
    variable_type: type[Variable] | str,
    value: Any,
    reduce_fn: Callable[[Any, Any], Any],
    init_fn: Callable[[], Any],
) -> Any:
    """What is recorded under the name afterwards; None where it is not to be."""
    if isinstance(variable_type, str):
        variable_type = variable_type_from_name(variable_type, allow_register=True)
    captures = vars(module).get(CAPTURES)
    if captures is not None:
        for cell in captures:
            if cell.type is variable_type:
                known = cell.value
                new = reduce_fn(known[name] if name in known else init_fn(), value)
                try:
                    cell.value = {**known, name: new}
                except TraceContextError:
                    raise _outside(verb, module, name) from None
                return new
        return None
    attribute = sown_attribute(module, name)
    existing = vars(module).get(attribute)
    if not isinstance(existing, (variable_type, type(None))):
        raise ValueError(
            f"{verb}: `{type(module).__name__}.{name}` is a {type(existing).__name__}, not a "
            f"{variable_type.__name__}.\nCure: {verb} under another name."
        )
    new = reduce_fn(init_fn() if existing is None else existing.value, value)
    if existing is None:
        existing = variable_type(new)
        setattr(module, attribute, existing)
    elif new is not existing.value:
        existing.value = new
    return existing.value
