"""Forward hooks: functions that run before or after a Module is called, for one object at a time.

A hooked object changes its class, to a subclass made once for each class, whose `__call__` runs the
hooks; the hooks themselves are its static attribute `_refax_hooks`. So a call of an object without
hooks costs nothing, and everything that knows classes and static attributes knows hooks: `nnx.jit`
traces anew where a hook was added, the objects inside a transform have them, so have clones and
copies (and pickles, where the function can be pickled), and `nnx.split`/`nnx.merge` keep them. The
last hook that is removed takes the attribute and the class along.

Hooks are compared by identity, not by what they do: two recorders that append to two lists are two
hooks, also while both lists are empty.

A hook is for one method, `__call__` if no other is named. One for every method runs for each public
method, `__call__` among them, and gets its name.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

from ..graph.filters import Filter, checked, to_predicate
from ..objects.node import new_pytree
from ..verbs.iteration import iter_graph
from ..verbs.module import Module

_HOOKS = "_refax_hooks"
Method = str | EllipsisType


@dataclass(eq=False, slots=True, repr=False)
class Hook:
    """A function, whether it runs before the call, and of which method; `...` for every one."""

    function: Callable
    before: bool
    method: Method = "__call__"

    def run(self, method: str, *call: Any) -> Any:
        """What the function says of a call: (module, args, kwargs[, output])."""
        if self.method is ...:
            return self.function(method, *call)
        return self.function(*call) if method == self.method else None

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", repr(self.function))
        return f"<hook {'before' if self.before else 'after'}: {name}>"


@dataclass(eq=False, slots=True)
class HookHandle:
    """One hook on one object: `remove()` takes it off, as does the end of a `with` block."""

    _module: Module
    _hook: Hook

    def remove(self) -> None:
        """Take the hook off; nothing happens if it is off already."""
        _set_hooks(self._module, [h for h in hooks_of(self._module) if h is not self._hook])

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def hooks_of(module: Module) -> tuple[Hook, ...]:
    return vars(module).get(_HOOKS, ())


def _has(module: Any, method: Method) -> bool:
    return isinstance(module, Module) and (method is ... or method in methods_of(type(module)))


def _with_method(verb: str, modules: list[Module], method: Method) -> list[Module]:
    """Those of the Modules that have the method; there must be one."""
    found = [m for m in modules if _has(m, method)]
    if modules and not found:
        known = ", ".join(sorted({name for m in modules for name in methods_of(type(m))})) or "none"
        raise TypeError(
            f"{verb}: {type(modules[0]).__name__} has no public method `{method}`; it has: {known}."
            "\nCure: hook the layer that is called, or name one of these with method=…"
        )
    return found


def _put(module: Module, hook: Hook) -> HookHandle:
    _set_hooks(module, [*hooks_of(module), hook])
    return HookHandle(module, hook)


def _set_hooks(module: Module, hooks: list[Hook]) -> None:
    hooked = vars(module).get(_HOOKS) is not None
    if hooks:
        setattr(module, _HOOKS, tuple(hooks))
        if not hooked:
            setattr(module, "__class__", _hooked_class(type(module)))  # noqa: B010 - pyright
    elif hooked:
        delattr(module, _HOOKS)
        setattr(module, "__class__", type(module).__base__)  # noqa: B010


@functools.cache
def _hooked_class(cls: Any) -> type:
    """The subclass of `cls` whose public methods run the hooks."""

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        return _new_hooked, (cls,), self.__getstate__()

    body = {"__slots__": (), "__reduce_ex__": __reduce_ex__}
    body |= {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    body |= {name: _hooked_method(cls, name) for name in methods_of(cls)}
    return types.new_class(cls.__name__, (cls,), exec_body=lambda space: space.update(body))


def methods_of(cls: type) -> list[str]:
    """The methods of a class itself and of what it is made from, but not those of every Module."""
    found: dict[str, bool] = {}
    for base in reversed([b for b in cls.__mro__ if b not in Module.__mro__]):
        for name, value in vars(base).items():
            is_bound = hasattr(value, "__get__")  # and no function that is kept as it is
            of_objects = not isinstance(value, (staticmethod, classmethod, type))
            if name == "__call__" or not name.startswith("_"):
                found[name] = callable(value) and is_bound and of_objects
    return [name for name, is_method in found.items() if is_method]


def _hooked_method(cls: Any, name: str) -> Callable[..., Any]:
    method = getattr(cls, name)

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        hooks = hooks_of(self)
        for hook in hooks:
            if hook.before and (changed := hook.run(name, self, args, kwargs)) is not None:
                args, kwargs = changed
        output = method(self, *args, **kwargs)
        for hook in hooks:
            if not hook.before:
                changed = hook.run(name, self, args, kwargs, output)
                output = output if changed is None else changed
        return output

    return call


def _new_hooked(cls: type) -> Any:
    return new_pytree(_hooked_class(cls))


@checked
def add_forward_hook(
    module: Module, fn: Callable[..., Any], *, method: Method = "__call__"
) -> HookHandle:
    """Run `fn(module, args, kwargs, output)` after each call of `module`.

    What `fn` returns replaces the output, unless it is None. Inside a transform the hook is part of
    what is traced: it sees tracers and runs when JAX traces; a hook that was added makes `nnx.jit`
    trace again. `sow` is the way to get values out of one.

    Args:
        module: the object; other objects of its class are not concerned.
        fn: the hook.
        method: the public method of whose calls it runs after; `...` for every one, whose name
            `fn` then gets first.

    Returns:
        A handle with `remove()`, which is a context manager, too.

    Raises:
        TypeError: `module` has no such method.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> with nnx.add_forward_hook(layer, lambda m, args, kwargs, y: y * 0):
        ...     float(layer(jnp.ones(2)).sum())
        0.0
    """
    _with_method("nnx.add_forward_hook", [module], method)
    return _put(module, Hook(fn, False, method))


@checked
def add_forward_pre_hook(
    module: Module, fn: Callable[..., Any], *, method: Method = "__call__"
) -> HookHandle:
    """Run `fn(module, args, kwargs)` before each call of `module`.

    What it returns, unless it is None, is the (args, kwargs) to call with. The rest is as in
    `nnx.add_forward_hook`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> layer = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> handle = nnx.add_forward_pre_hook(layer, lambda m, args, kwargs: print(args[0].shape))
        >>> _ = layer(jnp.ones(2))
        (2,)
        >>> handle.remove()
    """
    _with_method("nnx.add_forward_pre_hook", [module], method)
    return _put(module, Hook(fn, True, method))


@checked
@contextlib.contextmanager
def forward_hooks(
    model: Any,
    fn: Callable[..., Any] | None = None,
    *,
    pre: Callable[..., Any] | None = None,
    filter: Filter = ...,
    method: Method = "__call__",
) -> Iterator[None]:
    """Hooks on every Module below that has the method, for the length of a `with` block.

    Args:
        model: a Module, or a container of them; itself included.
        fn: runs after each call, see `nnx.add_forward_hook`.
        pre: runs before each call, see `nnx.add_forward_pre_hook`.
        filter: which Modules: a type, `nnx.PathContains`, a function (path, module) → bool ….
        method: which method, or `...` for every public one; see `nnx.add_forward_hook`.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
        >>> def show(module, args, kwargs, output):
        ...     print(type(module).__name__, output.shape)
        >>> with nnx.forward_hooks(model, show):
        ...     _ = model(jnp.ones(2))
        Linear (3,)
        Sequential (3,)
    """
    hooks = [Hook(f, before, method) for f, before in ((pre, True), (fn, False)) if f is not None]
    modules = [m for _, m in modules_of(model, filter)]
    modules = _with_method("nnx.forward_hooks", modules, method)
    with hooked((m, hook) for m in modules for hook in hooks):
        yield


def modules_of(model: Any, filter: Filter = ...) -> list[tuple[tuple, Module]]:
    """(path, Module) of every Module below that the filter matches."""
    matches = to_predicate(filter)
    visited = iter_graph(model)
    return [(path, m) for path, m in visited if isinstance(m, Module) and matches(path, m)]


@contextlib.contextmanager
def hooked(pairs: Iterable[tuple[Module, Hook]]) -> Iterator[None]:
    """Each Module with its hook, for the length of a `with` block."""
    with contextlib.ExitStack() as stack:
        for module, hook in pairs:
            stack.enter_context(_put(module, hook))
        yield


def remove_hooks(model: Any) -> None:
    """Take every hook off every Module below."""
    for _, module in modules_of(model):
        _set_hooks(module, [])
