"""`jit`: one inner `jax.jit` per structure of the objects, found again by one dict lookup.

A warm call finds the objects among the arguments, checks that their plan still holds, gathers the
values, makes one C++ call and writes back the values that changed. The compiled programs belong to
the function, not to the wrapper, so `nnx.jit(f)` made again for the same `f` compiles nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Concatenate, Protocol, Unpack, cast, overload

import jax

from .._jax_compat import is_outside_of_traces
from ..graph.graphdef import GraphDef
from ..lift import errors
from ..lift.arguments import Slot, named_like, set_unbound, unbind
from ..lift.call import Call, enter, leave, occurrences_in, pure_function, root_places
from ..lift.closures import collecting
from ..lift.inside import Change, Inside
from ..lift.places import inputs_of, said
from ..lift.programs import programs_of, proxy, remember
from ..objects.arguments import checked
from ..objects.at_once import uninterrupted
from ..objects.outer_reads import Reads, written_since
from ..objects.type_names import B, C, O, P, R, S
from ..verbs.scopes import call_jitted, is_method
from .bound import Bindable, decorator_or_function, positions
from .donation import told, tracing_starts
from .eval_shape import eval_shape
from .jit_layout import Donated, Layout, check_results, layout_of, places_of_leaves
from .jit_options import Options, StaticArguments
from .jit_places import Spread, bring, is_spread, kept_places, places_of, spread_of
from .prefixes import Shardings
from .retrace import (
    StaleConstantWarning,
    TraceRecord,
    Traces,
    placement,
    stale_constant,
    users_level,
)
from .signatures import AllJitOptions, D, JitOptions
from .stages import Lowered

_NOTHING = Donated()


# fmt: off
class _Jit(Protocol[O]):
    @overload
    def __call__(self, fun: D, *args: O.args, **options: O.kwargs) -> D: ...
    @overload
    def __call__(self, fun: Callable[P, R], *args: O.args,
                 **options: O.kwargs) -> JitWrapped[P, R]: ...
    @overload
    def __call__(self, *args: O.args, **options: O.kwargs) -> _Jit[[]]: ...
# fmt: on


def _as_jit(transform: Callable[Concatenate[Any, O], Any]) -> _Jit[O]:
    return cast(Any, decorator_or_function(transform))


@_as_jit
def jit(
    fun: Callable[..., Any],
    *,
    in_shardings: Shardings = None,
    out_shardings: Shardings = None,
    static_argnums: int | Sequence[int] | None = None,
    static_argnames: str | Iterable[str] | None = None,
    donate_argnums: int | Sequence[int] | None = None,
    donate_argnames: str | Iterable[str] | None = None,
    **options: Unpack[JitOptions],
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
    static, donate = (static_argnums, static_argnames), (donate_argnums, donate_argnames)
    return JitWrapped(fun, Options(fun, in_shardings, out_shardings, static, donate, {**options}))


@dataclasses.dataclass(slots=True)
class _Program:
    """One compiled structure: the inner `jax.jit` and how its arguments are laid out."""

    jitted: Any
    inner: Callable  # what it compiles
    layout: Layout
    spread: Spread | None  # how the values lie on several devices
    donates: bool
    found: tuple[Any, ...] | None = None  # all their shardings, of the last call
    fresh: bool = True  # whether it was not called yet


class JitWrapped(Bindable[P, R]):
    """What `nnx.jit` returns: callable, with `trace`, `lower`, `eval_shape` and `clear_cache`."""

    def __init__(self, fun: Callable[..., Any], options: Options, first: tuple[Any, ...] = ()):
        functools.update_wrapper(self, fun)
        self.__wrapped__: Callable[..., Any] = functools.partial(fun, *first) if first else fun
        self._function, bound = unbind(fun)
        self._shift = 0 if bound is None else 1  # positions are counted without a bound object
        self._first = first if bound is None else (bound, *first)  # in front of what a call gives
        self._options = options
        self._plain = options.plain
        kept = programs_of(self._function, options.key())  # by all wrappers of the function
        self._programs: dict[Any, _Program] = kept.setdefault("programs", {})
        self.traces: Traces = kept.setdefault("traces", Traces(self._function))
        self._reads: Reads = kept.setdefault("reads", {})
        self._places: dict[Any, Any] = kept.setdefault("places", {})  # of leaves, by in_shardings
        if bound is not None:
            free: Any = copy.copy(self)
            free._first = ()
            set_unbound(self, lambda obj, /, *args, **kw: free(obj, *first, *args, **kw), bound)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._reads:
            self._warn_of_constants()
        call, program, inputs = self._prepare(args, kwargs)
        if program.donates:  # an interrupt would leave deleted arrays behind
            return uninterrupted(self._run_donating, call, program, inputs)
        return self._run(call, program, inputs)

    def _run_donating(self, call: Call, program: _Program, inputs: tuple) -> Any:
        fresh, program.fresh = program.fresh, False
        return self._telling(call, program, fresh, self._run, call, program, inputs)

    def _telling(self, call: Call, program: _Program, fresh: bool, run: Any, *args: Any) -> Any:
        given = functools.partial(program.layout.given_inputs, call, self._function)
        return told(self._function, given, run, *args, fresh=fresh)

    def _run(self, call: Call, program: _Program, inputs: tuple) -> Any:
        try:
            if is_outside_of_traces():
                out = program.jitted(*inputs)
            else:
                out = call_jitted(program.jitted, inputs, self._object_of(call))
        except Exception as error:
            fault = program.layout.tell(error, call, self._function)
            if fault is None:
                raise
            raise fault from error
        return leave(call, out)

    def _object_of(self, call: Call) -> Any:
        """The object whose method this is; None if it is a function."""
        args = call.tree[0]
        first = call.roots[args[0].number] if args and type(args[0]) is Slot else None
        return first if is_method(self._function, first) else None

    def __repr__(self) -> str:
        return f"nnx.jit({getattr(self._function, '__qualname__', self._function)})"

    def _prepare(self, args: tuple, kwargs: dict[str, Any]) -> tuple[Call, _Program, tuple]:
        """The call, its program and the arguments of the inner function."""
        if self._first:
            args = (*self._first, *args)
        if self._plain:  # the way of nearly every call
            call = enter(args, kwargs)
            program = self._programs.get(call.plan.graphdef)
            if program is None or program.spread is not None or is_spread(call.values):
                program = self._at_place(call, call.plan.graphdef)
                call.groups = program.layout.groups
                return call, program, program.layout.inputs(call)
            return call, program, ([call.values], call.tree)
        options, count = self._options, len(args)
        statics = StaticArguments(options, args, kwargs, self._shift)
        call = enter(statics.args, statics.kwargs)
        at = frozenset(positions(options.donate_numbers, count, self._shift))
        names = frozenset(options.donate_names).intersection(call.tree[1])
        given = Donated(at.difference(statics.by_position), names)
        try:
            # With shardings, the places of the objects among the arguments matter too.
            places = jax.tree.structure(call.tree) if options.sharded else count
            key = (call.plan.graphdef, statics.key(), given, places)
            if options.in_shardings is not None and is_outside_of_traces():
                if (places := self._places.get(key)) is None:
                    at_static = tuple(statics.by_position)
                    places = places_of_leaves(self._function, call, options, self._shift, at_static)
                    remember(self._places, key, places)
                bring(call, places)
            program = self._at_place(call, key, statics, given)
        except TypeError:
            if (error := statics.unhashable(self._function)) is not None:
                raise error from None
            raise
        call.groups = program.layout.groups
        return call, program, program.layout.inputs(call)

    def _at_place(
        self,
        call: Call,
        key: Any,
        statics: StaticArguments | None = None,
        given: Donated = _NOTHING,
    ) -> _Program:
        """The program for values that lie where those of a call do: the last one, mostly."""
        last = self._programs.get(key)
        before = None if last is None else last.spread
        if last is not None and not before and not is_spread(call.values):
            return last
        found = places_of(call.values)
        if last is not None and before and last.found == found:
            last.found = found  # equal, and from now on the same, which is told faster
            return last
        spread = spread_of(found)
        if last is not None:
            if before == spread:
                last.found = found
                return last
            remember(self._programs, (key, before), last)
        program = self._programs.get((key, spread))
        if program is None:
            program = self._compile(call, statics, given, spread, last if before else None)
        program.found = found
        remember(self._programs, key, program)
        return program

    def _compile(
        self,
        call: Call,
        statics: StaticArguments | None,
        given: Donated,
        spread: Spread | None,
        like: _Program | None,
    ) -> _Program:
        """Make the inner jit for a structure that was not seen before, or not at this place."""
        options = self._options
        if spread and like is not None:
            inner, layout = like.inner, like.layout
        else:
            inner, layout = self._inner(call, statics, given, bool(spread))
        keywords = {**options.rest, **layout.keywords}
        jitted = jax.jit(inner, **keywords)
        if spread:
            call.groups = layout.groups
            inputs = layout.inputs(call)
            result = keywords.get("out_shardings", (None,))[0]
            keywords["out_shardings"] = kept_places(jitted, inputs, call, spread, result)
            jitted = jax.jit(inner, **keywords)
        return _Program(jitted, inner, layout, spread, bool(layout.given))

    def _inner(
        self, call: Call, statics: StaticArguments | None, given: Donated, apart: bool
    ) -> tuple[Callable, Layout]:
        """The function that JAX gets to see, and how its arguments are laid out."""
        options, user, reads = self._options, proxy(self._function), self._reads
        statics = statics or StaticArguments(options, (), {})
        static_at = tuple(statics.by_position)
        layout = layout_of(self._function, call, options, self._shift, static_at, given, apart)
        call.groups = layout.groups
        labels = errors.argument_names(self._function, len(call.tree[0]))
        roots = root_places(call.tree, self._function)
        call.paths = [None] * len(call.roots)  # a program is for all objects of this structure

        def function(*args: Any, **kwargs: Any) -> Any:
            with collecting(reads, user):
                return user(*args, **kwargs)

        function.__wrapped__ = user  # type: ignore[attr-defined]
        pure = pure_function(
            statics.into(named_like(self._function, function)),
            call,
            always=layout.donated,
            rules=layout.rules,
            observe=self._observer(call.graphdef, roots, labels, statics.named(labels)),
            returned=check_results(layout, call),
        )
        inner: Any = layout.inner(pure)
        inner.__signature__ = layout.names(call.graphdef, roots, labels)
        return inner, layout

    def _observer(
        self, graphdef: GraphDef, roots: list[str], labels: list[str], fixed: dict[str, Any]
    ) -> Callable:
        """What notes each trace, with the places of the objects as they are now."""
        traces = self.traces

        def observe(inside: Inside, tree: Any) -> None:
            running, at = _running(sys._getframe(2)), {}  # from outside of the function
            if running is not None:
                inputs = inputs_of(running[1], running[0]._function)
                at = {place: said(placement(value)) for place, value in inputs}
            traces.note(TraceRecord(graphdef, roots, inside.values, tree, labels, fixed, at))
            tracing_starts()

        return observe

    def _warn_of_constants(self) -> None:
        """Say once if a Variable that the programs have as a constant was written since."""
        variable = written_since(self._reads)
        if variable is not None:
            self._reads.clear()
            warnings.warn(
                stale_constant(self._function, variable), StaleConstantWarning, users_level()
            )

    # -- looking at what is compiled -------------------------------------------------------------

    def explain(self) -> str:
        """Why the function was traced again: path, old and new for each trace after the first.

        Example:
            >>> from refax import nnx
            >>> import jax.numpy as jnp
            >>> double = nnx.jit(lambda x: 2 * x)
            >>> _ = double(jnp.ones(2)), double(jnp.ones(3))
            >>> print(double.explain())
            <lambda>: traced 2 times.
            trace 2, compared with the nearest earlier one:
              x: float32[2] → float32[3]
        """
        return self.traces.explain()

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """`jax.jit(f).trace(…)` of the inner function: `.jaxpr`, `.lower()`, …

        That is also what `jax.export.export(nnx.jit(f))` asks for; its artifact takes the arrays in
        refax's own form. `nnx.export` makes one that takes and gives what the function does.
        """
        _let_export_write()
        _, program, inputs = self._prepare(args, kwargs)
        return program.jitted.trace(*inputs)

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """Lower without running: `.as_text()`, `.compile()`, `.cost_analysis()`, …"""
        call, program, inputs = self._prepare(args, kwargs)
        occurring = occurrences_in(call, self._function, None, "")
        lowered = self._telling(call, program, True, program.jitted.lower, *inputs)
        return Lowered(self, lowered, call.graphdef, occurring)

    def eval_shape(self, *given: Any, **kwargs: Any) -> R:
        """Shapes and dtypes of the result, without running; the arguments stay as they are."""
        args = (*self._first, *given)
        statics = StaticArguments(self._options, args, kwargs, self._shift)
        return eval_shape(statics.into(self._function), *statics.args, **statics.kwargs)

    @property
    def jitted_fn(self) -> JitWrapped[..., R]:
        """The function of all arguments: this itself, but for one from `nnx.jit_partial`."""
        whole = copy.copy(self)
        whole._first = self._first[: self._shift]
        return whole

    def _cache_size(self) -> int:
        """How many programs are compiled, as a function from `jax.jit` tells it."""
        return sum(program.jitted._cache_size() for program in self._programs.values())

    def clear_cache(self) -> None:
        """Forget every compiled program of this function."""
        while self._programs:
            self._programs.popitem()[1].jitted.clear_cache()


# fmt: off
@overload
def jit_partial(fun: Callable[Concatenate[B, P], R], a: B, /,
                **options: Unpack[AllJitOptions]) -> JitWrapped[P, R]: ...
@overload
def jit_partial(fun: Callable[Concatenate[B, C, P], R], a: B, b: C, /,
                **options: Unpack[AllJitOptions]) -> JitWrapped[P, R]: ...
@overload
def jit_partial(fun: Callable[Concatenate[B, C, S, P], R], a: B, b: C, c: S, /, *more: Any,
                **options: Unpack[AllJitOptions]) -> JitWrapped[..., R]: ...
# fmt: on
@checked
def jit_partial(fun: Callable[..., R], *partial_args: Any, **options: Any) -> JitWrapped[..., R]:
    """`nnx.jit` of a function whose first arguments are fixed: a training step on its model.

    Args:
        fun: the function.
        *partial_args: its first arguments; what it does to objects in them happens.
        **options: those of `nnx.jit`, counted over all arguments of `fun`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> count = nnx.Variable(jnp.array(0))
        >>> def add(count, x):
        ...     count += x
        >>> step = nnx.jit_partial(add, count)
        >>> step(2), step(3), int(count)
        (None, None, 5)
    """
    return JitWrapped(fun, jit(fun, **options)._options, partial_args)


@functools.cache
def _let_export_write() -> None:
    """Tell `jax.export` how to write what an inner function has in its trees besides arrays."""
    from jax import export

    for part in (Slot, Change):
        export.register_pytree_node_serialization(
            part,
            serialized_name=f"refax.{part.__name__}",
            serialize_auxdata=pickle.dumps,
            deserialize_auxdata=pickle.loads,
        )


def _compiled(event: str, *_: Any, **told: Any) -> None:
    """JAX tells of a compilation: noted for the call that it is in, if that is one of ours."""
    if event.endswith("/backend_compile_duration") and (running := _running(sys._getframe(1))):
        wrapped, call = running
        name = getattr(wrapped._function, "__name__", "")
        if name in told.get("fun_name", name):  # else it is what moves its inputs
            wrapped.traces.note_compilation(inputs_of(call, wrapped._function))


def _running(frame: types.FrameType | None) -> tuple[JitWrapped, Call] | None:
    """The call for which something happens, but inside of the function; None if it is not ours."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "pure" and code.co_filename == pure_function.__code__.co_filename:
            return None  # an operation inside the function
        if code in _CALLING and "call" in (known := frame.f_locals):
            return known["self"], known["call"]
        frame = frame.f_back
    return None


_CALLING = (JitWrapped.__call__.__code__, JitWrapped._compile.__code__)
jax.monitoring.register_event_duration_secs_listener(_compiled)
