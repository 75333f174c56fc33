"""The keywords of `jit`: which arguments are static or donated, counted as JAX counts them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..graph.state import State
from ..lift import errors
from ..lift.prefix import FilterPrefix, by_path
from ..objects.arguments import unfit
from ..objects.errors import suggest
from ..objects.node import Node
from ..objects.statics import static_key
from .bound import with_static, without_static


def as_tuple(given: Any) -> tuple | None:
    """One or several positions or names as several; None stays None."""
    return None if given is None else (given,) if isinstance(given, (int, str)) else tuple(given)


class Options:
    """The keywords of one `jit`, as given, and what follows from the function's signature."""

    def __init__(
        self,
        function: Callable,
        in_shardings: Any,
        out_shardings: Any,
        static: tuple[Any, Any],
        donate: tuple[Any, Any],
        rest: dict[str, Any],
    ):
        self.in_shardings: Any = _by_path(in_shardings)
        self.out_shardings: Any = _by_path(out_shardings)
        self.rest = rest
        self.sharded: bool = in_shardings is not None or out_shardings is not None
        numbers, names, donated, donated_names = map(as_tuple, (*static, *donate))
        self._given = (numbers, names, donated, donated_names)
        self.plain: bool = not self.sharded and self._given == (None,) * 4
        self.static_numbers, self.static_names = resolved(function, numbers, names)
        self.donate_numbers, self.donate_names = resolved(function, donated, donated_names)

    def key(self) -> Any:
        """Equal for equal keywords; it may have no hash."""
        items = tuple(sorted(self.rest.items(), key=lambda item: item[0]))
        return self.in_shardings, self.out_shardings, self._given, items


def _by_path(shardings: Any) -> Any:
    """The prefix with a lift type by path, which has a hash, for each object or State of them."""
    return jax.tree.map(
        lambda x: by_path(x, None),
        shardings,
        is_leaf=lambda x: x is None or isinstance(x, (Node, State, FilterPrefix)),
    )


def resolved(
    f: Callable, numbers: tuple[int, ...] | None, names: tuple[str, ...] | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Positions and names from what was given of either; JAX infers the other in the same way."""
    try:
        parameters = inspect.signature(f).parameters if numbers or names else {}
    except (TypeError, ValueError):
        parameters = {}
    if not parameters:
        return numbers or (), names or ()
    kinds = {p.kind for p in parameters.values()}
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p.name for p in parameters.values() if p.kind in by_position]
    for name in names or ():
        if name not in parameters and inspect.Parameter.VAR_KEYWORD not in kinds:
            what = f"the name of a parameter of {f.__name__}, which has {sorted(parameters)}"
            raise unfit(name, what, f"name one of them.{suggest(name, parameters)}")
    count = len(positional)
    for number in numbers or ():
        if not -count <= number < count and inspect.Parameter.VAR_POSITIONAL not in kinds:
            what = f"the position of a parameter of {f.__name__}, which has {count}"
            raise unfit(number, what, "count from 0; what is keyword-only goes by its name.")
    if names is None:
        return numbers or (), tuple(positional[i] for i in numbers or () if -count <= i < count)
    if numbers is None:
        numbers = tuple(i for i, name in enumerate(positional) if name in names)
    return numbers, names


class StaticArguments:
    """The static arguments of one call, and the others without them."""

    __slots__ = ("args", "by_name", "by_position", "kwargs")

    def __init__(self, options: Options, args: tuple, kwargs: dict[str, Any], shift: int = 0):
        self.args, self.kwargs = args, kwargs
        self.by_position: dict[int, Any] = {}
        self.by_name: dict[str, Any] = {}
        if options.static_numbers or options.static_names:
            self.args, self.by_position = without_static(args, options.static_numbers, shift)
            self.by_name = {n: kwargs[n] for n in options.static_names if n in kwargs}
            self.kwargs = {k: v for k, v in kwargs.items() if k not in self.by_name}

    def into(self, function: Callable) -> Callable:
        """The function of the others alone."""
        return with_static(function, self.by_position, self.by_name)

    def key(self) -> tuple:
        if not (self.by_position or self.by_name):
            return ()
        hash((*self.by_position.values(), *self.by_name.values()))  # as jax.jit, which wants one
        return (
            tuple((i, static_key(v)) for i, v in self.by_position.items()),
            tuple((n, static_key(v)) for n, v in self.by_name.items()),
        )

    def named(self, labels: Sequence[str]) -> dict[str, Any]:
        return {**{labels[i]: v for i, v in self.by_position.items()}, **self.by_name}

    def unhashable(self, function: Callable) -> Exception | None:
        """The error for a static argument without a hash, if there is one."""
        labels = errors.argument_names(function, max(self.by_position, default=-1) + 1)
        for place, value in self.named(labels).items():
            try:
                hash(value)
            except TypeError:
                return errors.unhashable_argument(place, value)
        return None
