"""`jit`: one inner `jax.jit` per structure of the objects, found again by one dict lookup.

A warm call finds the objects among the arguments, checks that their plan still holds, gathers the
values, makes one C++ call and writes back the values that changed. The compiled programs belong to
the function, not to the wrapper, so `nnx.jit(f)` made again for the same `f` compiles nothing.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from ..graph.statics import static_key
from ..graph.trace_errors import tracing
from ..lift import errors
from ..lift.arguments import unbind
from ..lift.call import Call, enter, leave, one_group, pure_function
from ..lift.prefix import (
    Groups,
    OutputRules,
    all_entries,
    broadcast,
    group_leaves,
    occurrences,
    without_objects,
)
from .bound import decorator_or_function, method_of

__all__ = ["JitWrapped", "jit"]

_MAX_PROGRAMS = 256  # per function: beyond, the oldest go, as for any bounded cache


@decorator_or_function
def jit(
    fun: Callable,
    /,
    *,
    in_shardings: Any = None,
    out_shardings: Any = None,
    static_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    donate_argnames: str | Iterable[str] | None = None,
    **options: Any,
) -> JitWrapped:
    """`jax.jit` for functions of objects: what they do to the objects happens outside as well.

    Takes every keyword of the installed `jax.jit`; without objects it behaves as `jax.jit` does.
    Only what the function changed leaves the compiled program. A change of structure inside
    (attributes added, containers grown) is carried out, and the next call compiles again.

    Args:
        fun: the function, or a method; a bound method's object is an argument too.
        in_shardings, out_shardings: prefixes of the positional arguments and of the result; an
            object takes a sharding or `nnx.StateSharding`.
        static_argnums, static_argnames: hashable arguments that are compiled in.
        donate_argnums, donate_argnames: arguments whose buffers may be reused. A donated object is
            usable afterwards: its Variables hold the program's results.
        **options: `keep_unused`, `inline`, `compiler_options`, …, passed on to `jax.jit`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> @nnx.jit
        ... def step(count, x):
        ...     count += 1
        ...     return x * count
        >>> count = nnx.Variable(jnp.array(0))
        >>> int(step(count, 3)), int(step(count, 3))
        (3, 6)
    """
    return JitWrapped(
        fun,
        _Options(
            in_shardings,
            out_shardings,
            _indices(static_argnums),
            _names(static_argnames),
            _indices(donate_argnums),
            _names(donate_argnames),
            options,
        ),
    )


def _indices(given: int | Sequence[int] | None) -> tuple[int, ...] | None:
    return None if given is None else (given,) if isinstance(given, int) else tuple(given)


def _names(given: str | Iterable[str] | None) -> tuple[str, ...] | None:
    return None if given is None else (given,) if isinstance(given, str) else tuple(given)


class _Options:
    """The keywords of one `jit`."""

    def __init__(
        self,
        in_shardings: Any,
        out_shardings: Any,
        static_argnums: tuple[int, ...] | None,
        static_argnames: tuple[str, ...] | None,
        donate_argnums: tuple[int, ...] | None,
        donate_argnames: tuple[str, ...] | None,
        rest: dict[str, Any],
    ):
        self.in_shardings = in_shardings
        self.out_shardings = out_shardings
        self.static = (static_argnums, static_argnames)
        self.donate = (donate_argnums, donate_argnames)
        self.rest = rest
        self.sharded = in_shardings is not None or out_shardings is not None
        self.plain = (
            not self.sharded and self.static == (None, None) and self.donate == (None, None)
        )

    def key(self) -> Any:
        """Equal for equal keywords; None where that cannot be told."""
        parts = (self.in_shardings, self.out_shardings, self.static, self.donate)
        items = tuple(sorted(self.rest.items(), key=lambda item: item[0]))
        try:
            hash((parts, items))
        except TypeError:
            return None
        return (parts, items)


def _resolve(
    f: Callable, given: tuple[tuple[int, ...] | None, tuple[str, ...] | None]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Positions and names from what was given of either; JAX infers the other in the same way."""
    numbers, names = given
    if numbers is not None and names is not None:
        return numbers, names
    if numbers is None and names is None:
        return (), ()
    try:
        parameters = list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):
        return numbers or (), names or ()
    positional = [
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if numbers is None:
        assert names is not None
        known = {p.name for p in parameters}
        if unknown := [n for n in names if n not in known] and not any(
            p.kind is p.VAR_KEYWORD for p in parameters
        ):
            raise ValueError(f"jit got argument names {names} that {f} does not have: {unknown}.")
        return tuple(i for i, n in enumerate(positional) if n in names), names
    return numbers, tuple(positional[i] for i in numbers if -len(positional) <= i < len(positional))


class _Program:
    """One compiled structure: the inner `jax.jit` and how its arguments are laid out."""

    __slots__ = ("donated", "groups", "jitted", "traces")

    def __init__(self, jitted: Any, groups: Groups | None, donated: tuple[bool, ...]):
        self.jitted = jitted
        self.groups = groups  # None: one group, nothing donated
        self.donated = donated  # by group


# Programs by function, so that they outlive a wrapper. Weak in the function, which the programs
# themselves refer to weakly.
_PROGRAMS: weakref.WeakKeyDictionary[Callable, dict[Any, dict]] = weakref.WeakKeyDictionary()


def _programs_of(f: Callable, options: _Options) -> dict[Any, _Program]:
    key = options.key()
    if key is None:
        return {}
    try:
        return _PROGRAMS.setdefault(f, {}).setdefault(key, {})
    except TypeError:  # a callable without weak references or hash
        return {}


class JitWrapped:
    """What `nnx.jit` returns: callable, with `trace`, `lower`, `eval_shape` and `clear_cache`."""

    def __init__(self, fun: Callable, options: _Options):
        functools.update_wrapper(self, fun)
        function, self._bound = unbind(fun)
        self._function = function
        self._options = options
        shift = 0 if self._bound is None else 1
        self._shift = shift
        static_numbers, self._static_names = _resolve(fun, options.static)
        donate_numbers, self._donate_names = _resolve(fun, options.donate)
        self._static_numbers = static_numbers
        self._donate_numbers = donate_numbers
        self._programs = _programs_of(function, options)
        self._plain = options.plain

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._bound is not None:
            args = (self._bound, *args)
        if self._plain:
            call = enter(args, kwargs)
            program = self._programs.get(call.plan.graphdef)
            if program is None:
                program = self._compile(call, call.plan.graphdef, {}, {})
            tree, grouped, static = program.jitted([call.values], call.tree)
            return leave(call, (tree, grouped, static))
        call, program, inputs = self._prepare(args, kwargs)
        return leave(call, program.jitted(*inputs))

    def __get__(self, obj: Any, objtype: Any = None) -> Any:
        return self if obj is None else method_of(self, obj)

    def __repr__(self) -> str:
        return f"nnx.jit({getattr(self._function, '__qualname__', self._function)})"

    # -- with static, donated or sharded arguments -----------------------------------------------

    def _prepare(self, args: tuple, kwargs: dict) -> tuple[Call, _Program, tuple]:
        """The call, its program and the positional arguments of the inner function."""
        count, shift = len(args), self._shift
        static_at = _positions(self._static_numbers, count, shift)
        statics = {i: args[i] for i in static_at}
        named = {n: kwargs[n] for n in self._static_names if n in kwargs}
        if statics:
            args = tuple(None if i in statics else a for i, a in enumerate(args))
        if named:
            kwargs = {k: v for k, v in kwargs.items() if k not in named}
        call = enter(args, kwargs)
        donate_at = set(_positions(self._donate_numbers, count, shift)) - set(statics)
        donate_names = [n for n in self._donate_names if n in kwargs]
        key: Any = call.plan.graphdef
        if not self._plain:
            key = (
                key,
                tuple((i, static_key(v)) for i, v in statics.items()),
                tuple((n, static_key(v)) for n, v in named.items()),
                tuple(sorted(donate_at)),
                tuple(donate_names),
                call.tree if self._options.sharded and _is_simple(call.tree) else count,
            )
        try:
            program = self._programs.get(key)
        except TypeError:
            raise self._unhashable_static(statics, named) or _reraise(key) from None
        if program is None:
            program = self._compile(call, key, statics, named, donate_at, donate_names)
        call.groups = program.groups
        grouped = call.grouped
        if not any(program.donated) and not donate_at and not donate_names:
            return call, program, (grouped, call.tree)
        args, kwargs = call.tree
        kept = (
            [None if d else g for g, d in zip(grouped, program.donated, strict=True)],
            tuple(None if i in donate_at else a for i, a in enumerate(args)),
            {k: v for k, v in kwargs.items() if k not in donate_names},
        )
        given = (
            [g if d else None for g, d in zip(grouped, program.donated, strict=True)],
            tuple(a if i in donate_at else None for i, a in enumerate(args)),
            {k: v for k, v in kwargs.items() if k in donate_names},
        )
        return call, program, (kept, given)

    def _unhashable_static(self, statics: dict[int, Any], named: dict[str, Any]) -> Any:
        labels = errors.argument_names(self._function, max(statics, default=-1) + 1)
        for place, value in [*((labels[i], v) for i, v in statics.items()), *named.items()]:
            try:
                hash(value)
            except TypeError:
                return errors.unhashable_argument(place, value)
        return None

    def _compile(
        self,
        call: Call,
        key: Any,
        statics: dict[int, Any],
        named: dict[str, Any],
        donate_at: Iterable[int] = (),
        donate_names: Iterable[str] = (),
    ) -> _Program:
        """Make the inner jit for a structure that was not seen before."""
        options, donate_at, donate_names = self._options, set(donate_at), set(donate_names)
        groups, donated, rules = self._group(call, donate_at, donate_names)
        call.groups = groups
        reference = _weak(self._function)

        def function(*args: Any, **kwargs: Any) -> Any:
            if statics:
                args = tuple(statics.get(i, a) for i, a in enumerate(args))
            user = reference()
            with tracing(user):
                return user(*args, **kwargs, **named)

        function.__name__ = getattr(self._function, "__name__", "function")
        function.__qualname__ = getattr(self._function, "__qualname__", function.__name__)
        function.__module__ = getattr(self._function, "__module__", __name__)
        pure: Any = pure_function(function, call, always=donated, rules=rules)
        keywords = dict(options.rest)
        donating = bool(donate_at or donate_names)
        if donating:
            pure, keywords["donate_argnums"] = _with_donated(pure, donated), (1,)
        if options.sharded:
            keywords.update(self._shardings(call, groups, donated, donate_at, donating))
        if len(self._programs) >= _MAX_PROGRAMS:
            self._programs.pop(next(iter(self._programs)))
        plain = self._plain or (not options.sharded and not donating)
        program = _Program(jax.jit(pure, **keywords), None if plain else groups, donated)
        try:
            self._programs[key] = program
        except TypeError:
            raise self._unhashable_static(statics, named) or _reraise(key) from None
        return program

    def _group(
        self, call: Call, donate_at: set[int], donate_names: set[str]
    ) -> tuple[Groups, tuple[bool, ...], OutputRules | None]:
        """The groups by (sharding, donated?); which groups are donated; rules for the outputs."""
        if not self._options.sharded and not donate_at and not donate_names:
            return one_group(call.plan), (False,), None
        args, kwargs = call.tree
        objects_args = self._with_objects(call)
        found = broadcast(self._in_prefix(len(args)), objects_args[0], "in_shardings", _is_sharding)
        found += [((jax.tree_util.DictKey(k), *p), x, None)
                  for k, v in objects_args[1].items()
                  for p, x, _ in broadcast(None, v, "in_shardings")]  # fmt: skip
        labels = errors.argument_names(self._function, len(args))
        sharded = group_leaves(
            call.plan, occurrences(found, call.numbers, labels), all_entries_of(self._options)
        )
        # A leaf that any donated argument reaches is donated: its Variable gets the new value.
        given: set[int] = set()
        for path, obj, _ in found:
            at = getattr(path[0], "idx", None)
            if at in donate_at or (at is None and path[0].key in donate_names):
                root = call.plan.graphdef.roots[call.numbers[id(obj)]]
                given.update(leaf for _, leaf in call.plan.graphdef.all_paths(root))
        half = len(sharded.entries)
        entries = [*((e, False) for e in sharded.entries), *((e, True) for e in sharded.entries)]
        groups = Groups(
            entries, [g + half * (leaf in given) for leaf, g in enumerate(sharded.of_leaf)]
        )
        rules = None
        if self._options.sharded:
            rules = OutputRules(
                tuple(
                    o._replace(prefix=_pair(o.prefix))
                    for o in occurrences(found, call.numbers, labels)
                ),
                jax.tree.map(_pair, self._options.out_shardings, is_leaf=_is_sharding),
                tuple(entries),
            )
        return groups, (False,) * half + (True,) * half, rules

    def _with_objects(self, call: Call) -> Any:
        from ..lift.arguments import put_back

        return put_back(call.tree, call.roots)

    def _in_prefix(self, count: int) -> Any:
        prefix = self._options.in_shardings
        if not isinstance(prefix, (tuple, list)) or _is_sharding(prefix):
            return prefix
        prefix = tuple(prefix)
        if self._shift and len(prefix) == count - 1:
            prefix = (None, *prefix)
        elif len(prefix) != count:
            raise errors.prefix_mismatch(
                "in_shardings", prefix, f"It has {len(prefix)} entries for {count} arguments."
            )
        return prefix

    def _shardings(
        self,
        call: Call,
        groups: Groups,
        donated: tuple[bool, ...],
        donate_at: set[int],
        donating: bool,
    ) -> dict[str, Any]:
        count = len(call.tree[0])
        by_group = [entry[0] for entry in groups.entries]
        args = without_objects(self._in_prefix(count))
        keywords: dict[str, Any] = {}
        if not donating:
            keywords["in_shardings"] = (by_group, (args, None))
        else:
            per_argument = args if isinstance(args, tuple) else (args,) * count

            def half(wanted: bool) -> Any:
                return (
                    [s if d is wanted else None for s, d in zip(by_group, donated, strict=True)],
                    tuple(
                        s if (i in donate_at) is wanted else None
                        for i, s in enumerate(per_argument)
                    ),  # fmt: skip
                    None,
                )

            keywords["in_shardings"] = (half(False), half(True))
        out = without_objects(self._options.out_shardings)
        keywords["out_shardings"] = (out, by_group, None)
        return keywords

    # -- looking at what is compiled -------------------------------------------------------------

    def _inner(self, args: tuple, kwargs: dict) -> tuple[Call, Any, tuple]:
        if self._bound is not None:
            args = (self._bound, *args)
        call, program, inputs = self._prepare(args, kwargs)
        return call, program.jitted, inputs

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """`jax.jit(f).trace(…)` of the inner function: `.jaxpr`, `.lower()`, …"""
        _, jitted, inputs = self._inner(args, kwargs)
        return jitted.trace(*inputs)

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """Lower without running: `.as_text()`, `.compile()`, `.cost_analysis()`, …"""
        _, jitted, inputs = self._inner(args, kwargs)
        return Lowered(self, jitted.lower(*inputs))

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Shapes and dtypes of the result, without running; the arguments stay as they are."""
        from .eval_shape import eval_shape

        static_at = _positions(self._static_numbers, len(args), 0)
        statics = {i: args[i] for i in static_at}
        named = {n: kwargs.pop(n) for n in self._static_names if n in kwargs}

        def call(*args: Any, **kwargs: Any) -> Any:
            full = [statics.get(i, a) for i, a in enumerate(args)]
            target = self._function
            if self._bound is not None:
                target, full = self._function, [args[-1], *full[:-1]]
            return target(*full, **kwargs, **named)

        dynamic = [None if i in statics else a for i, a in enumerate(args)]
        if self._bound is not None:
            dynamic.append(self._bound)
        return eval_shape(call, *dynamic, **kwargs)

    def clear_cache(self) -> None:
        """Forget every compiled program of this function."""
        for program in self._programs.values():
            program.jitted.clear_cache()
        self._programs.clear()


class Lowered:
    """A lowered program: `jax.stages.Lowered`, but `compile()` gives a function of objects."""

    def __init__(self, wrapped: JitWrapped, lowered: Any):
        self._wrapped = wrapped
        self._lowered = lowered

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lowered, name)

    def compile(self, *args: Any, **kwargs: Any) -> Compiled:
        return Compiled(self._wrapped, self._lowered.compile(*args, **kwargs))


class Compiled:
    """A compiled program: `jax.stages.Compiled`, called with objects."""

    def __init__(self, wrapped: JitWrapped, compiled: Any):
        self._wrapped = wrapped
        self._compiled = compiled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiled, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call, _, inputs = self._wrapped._inner(args, kwargs)
        return leave(call, self._compiled(*inputs))


def _with_donated(pure: Callable, donated: tuple[bool, ...]) -> Callable:
    """`pure` of two arguments, what is kept and what is donated, for `donate_argnums`."""

    @functools.wraps(pure)
    def inner(kept: Any, given: Any) -> Any:
        grouped = [g if d else k for k, g, d in zip(kept[0], given[0], donated, strict=True)]
        args = tuple(k if g is None else g for k, g in zip(kept[1], given[1], strict=True))
        return pure(grouped, (args, {**kept[2], **given[2]}))

    return inner


def _positions(numbers: Iterable[int], count: int, shift: int) -> list[int]:
    """Positions as the user counts them, in the arguments with a bound object in front."""
    given = count - shift
    return [shift + (n if n >= 0 else given + n) for n in numbers if -given <= n < given]


def _is_simple(tree: Any) -> bool:
    return not jax.tree.leaves(tree)


def _is_sharding(value: Any) -> bool:
    from ..lift.prefix import FilterPrefix

    return value is None or isinstance(
        value, (jax.sharding.Sharding, jax.sharding.PartitionSpec, FilterPrefix)
    )


def _pair(prefix: Any) -> Any:
    from ..lift.prefix import FilterPrefix

    if isinstance(prefix, FilterPrefix):
        new = object.__new__(type(prefix))
        new.filters, new.predicates = prefix.filters, prefix.predicates
        new.entries = tuple((e, False) for e in prefix.entries)
        return new
    return (prefix, False)


def all_entries_of(options: _Options) -> list[Any]:
    return [*all_entries((options.in_shardings, options.out_shardings))]


def _weak(f: Callable) -> Callable[[], Callable]:
    try:
        return weakref.ref(f)  # type: ignore[return-value]
    except TypeError:
        return lambda: f


def _reraise(key: Any) -> Exception:
    try:
        hash(key)
    except Exception as e:
        return e
    return TypeError("unhashable")
