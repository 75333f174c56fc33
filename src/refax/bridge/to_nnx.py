"""ToNNX: a Module around an object that makes its variables by `init` and runs by `apply`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

import jax

from ..objects.arguments import checked
from ..objects.errors import describe_value
from ..objects.type_names import F
from ..verbs.module import Module
from ..verbs.rngs import Rngs
from .linen_variables import collections, into

# The ToNNX modules that have their variables from the `lazy_init` that runs; None if none does.
_INITIALIZED: ContextVar[list[Any] | None] = ContextVar("refax_lazy_init", default=None)


@checked
def lazy_init(fn: F, *args: Any, **kwargs: Any) -> F:
    """Call a Module, or a method or function of Modules, so that each `ToNNX` gets its variables.

    Args:
        fn: the Module, or what else is to be called.
        *args, **kwargs: example arguments.

    Returns:
        `fn`, whose Modules are ready from now on.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> class Dot:  # what a Linen module offers
        ...     def init(self, rngs, x):
        ...         return {"params": {"w": nnx.initializers.ones(rngs["params"], (x.size, 2))}}
        ...
        ...     def apply(self, variables, x, rngs):
        ...         return x @ variables["params"]["w"]
        >>> model = nnx.bridge.lazy_init(nnx.bridge.ToNNX(Dot(), rngs=nnx.Rngs(0)), jnp.ones(3))
        >>> model.w.shape, model(jnp.ones(3)).shape
        ((3, 2), (2,))
    """
    token = _INITIALIZED.set([])
    try:
        fn(*args, **kwargs)  # type: ignore[operator]
    finally:
        _INITIALIZED.reset(token)
    return fn


class ToNNX(Module):
    """A Linen module, or any object with `init` and `apply` like its, as a Module.

    The variables are made by `lazy_init` and are attributes, one for each name at the top of a
    collection; a collection is a type of Variable: 'params' → `nnx.Param`, 'batch_stats' →
    `nnx.BatchStat`, others as `nnx.register_variable_name` says, or a type that is made for it.
    Each call gives the object one new key of each stream.

    What the object's `apply` is like is told by its signature: Linen's takes `variables` by
    collection, and offers `rngs`, `method`, `mutable`; one that begins with `params` takes the
    parameters alone, and `state` and `rng` where these come next (as Haiku's transforms have it).

    Args:
        module: the object.
        rngs: the seeds of its variables and of what it draws, of which the Module keeps forks; or a
            random key. A stream `default` stands in for `params`.

    Example:
        >>> from refax import nnx
        >>> import jax
        >>> import jax.numpy as jnp
        >>> class Noise:
        ...     def init(self, rngs, x):
        ...         return {}
        ...
        ...     def apply(self, variables, x, *, rngs):
        ...         return x + jax.random.normal(rngs["noise"], x.shape)
        >>> model = nnx.bridge.ToNNX(Noise(), rngs=nnx.Rngs(noise=0)).lazy_init(jnp.ones(3))
        >>> bool((model(jnp.ones(3)) == model(jnp.ones(3))).any())
        False
    """

    def __init__(self, module: Any, rngs: Rngs | jax.Array | None = None):
        self.to_nnx__form = _Form.of(module)
        streams = rngs if rngs is None or isinstance(rngs, Rngs) else Rngs(rngs)
        self.to_nnx__rngs: Rngs | None = None if streams is None else streams.fork()

    def lazy_init(self, *args: Any, **kwargs: Any) -> ToNNX:
        """Make the variables: `nnx.bridge.lazy_init(self, …)`."""
        return lazy_init(self, *args, **kwargs)

    def __call__(
        self,
        *args: Any,
        rngs: Rngs | jax.Array | Mapping[str, jax.Array] | None = None,
        method: Callable[..., Any] | str | None = None,
        mutable: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run the object's `apply` (or its method) with the variables and new keys.

        Args:
            *args, **kwargs: for the object.
            rngs: what to draw keys from in place of the Module's own streams, or the keys.
            method: the name of a method to run, or the method.
            mutable: which collections may be written: a name, several, or True for all. What was
                written is in the Variables afterwards.
        """
        keys = _keys(self.to_nnx__rngs if rngs is None else rngs)
        form = self.to_nnx__form
        if method is not None:
            kwargs["method"] = method
        initialized = _INITIALIZED.get()
        if initialized is not None:
            variables, self.to_nnx__form, out = form.init(keys, args, kwargs)
            self._write(variables, keep=any(self is other for other in initialized))
            initialized.append(self)
            return out
        variables = collections(self._attributes())
        try:
            out, updates = form.apply(variables, keys, mutable, args, kwargs)
        except Exception as error:
            if not variables:
                error.add_note(
                    "This ToNNX has no variables yet.\nCure: nnx.bridge.lazy_init(model, "
                    "*example_arguments) before the first call, if it is to have some."
                )
            raise
        self._write(updates)
        return out

    def _attributes(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if not k.startswith("to_nnx__")}

    def _write(self, variables: Mapping[str, Any], keep: bool = False) -> None:
        for collection, names in variables.items():
            before = self._attributes()
            for key, value in into(before, collection, names, keep).items():
                if before.get(key) is not value:
                    setattr(self, key, value)

    def __getattr__(self, name: str) -> Any:
        # Reached for what is no attribute: a method of the object, which runs by `apply`, or a
        # field of it.
        form = vars(self).get("to_nnx__form")
        if name.startswith("_") or form is None:
            raise AttributeError(name)
        if name in ("module", "to_nnx__module"):
            return form.module
        if name == "rngs":
            return self.to_nnx__rngs
        value = getattr(form.module, name)
        if inspect.ismethod(value) and value.__self__ is form.module and form.methods:
            return functools.partial(self, method=value.__func__)
        return value


@dataclasses.dataclass(frozen=True)
class _Form:
    """An object, and what its `init` and `apply` take."""

    module: Any = dataclasses.field(compare=False)
    token: Any = dataclasses.field(repr=False)  # what is compared: it, or what has its identity
    one_key: bool  # `init` takes a key, and no dict of keys
    params: bool  # `apply` takes the parameters first, and no dict by collection
    state: bool  # then the state, and returns (output, new state)
    key: bool  # then a key
    rngs: bool  # it has the keyword `rngs`
    methods: bool  # it has the keyword `method`

    @classmethod
    def of(cls, module: Any) -> _Form:
        if not (hasattr(module, "init") and hasattr(module, "apply")):
            raise TypeError(
                "nnx.bridge.ToNNX takes a Linen module, or another object with `init` and `apply`; "
                f"got {describe_value(module)}.\n"
                "Cure: pass the object, not its class; a Module of nnx is used as it is."
            )
        of_init = inspect.signature(module.init).parameters
        of_apply = inspect.signature(module.apply).parameters
        first = next(iter(of_init.values()), None)
        one_key = first is not None and first.name != "rngs" and first.kind < first.VAR_POSITIONAL
        names = [*of_apply, "", "", ""]
        params, state = names[0] == "params", names[:2] == ["params", "state"]
        key = names[1 + state] in ("rng", "key", "rng_key")
        anything = not params and any(p.kind == p.VAR_KEYWORD for p in of_apply.values())
        rngs, methods = (name in of_apply or anything for name in ("rngs", "method"))
        try:
            hash(token := module)
        except TypeError:  # a Linen module with a list in it
            token = object()
        return cls(module, token, one_key, params, state, key, rngs, methods)

    def init(
        self, keys: dict[Any, Any], args: Any, kwargs: Any
    ) -> tuple[Mapping[str, Any], _Form, Any]:
        """(the variables by collection, this form as the variables show it, the output)."""
        key = _one_key(keys) if self.one_key else keys
        with_output = getattr(self.module, "init_with_output", None)
        made: Any = (with_output or self.module.init)(key, *args, **kwargs)
        out, made = (None, made) if with_output is None else made
        if self.state:
            form, made = self, dict(zip(("params", "state"), made, strict=True))
        else:
            arrays = not all(isinstance(names, Mapping) for names in made.values())
            params = "params" not in made and (self.params or arrays)
            form = dataclasses.replace(self, params=params)
            made = {"params": made} if form.params else made
        if with_output is None:
            out, _ = form.apply(made, keys, None, args, kwargs)
        return made, form, out

    def apply(
        self,
        variables: Mapping[str, Any],
        keys: dict[Any, Any],
        mutable: Any,
        args: Any,
        kwargs: Any,
    ) -> Any:
        """(the output, what was written, by collection)."""
        first = [variables.get("params", {}) if self.params else variables]
        if self.state:
            first.append(variables.get("state", {}))
        if self.key:
            first.append(_one_key(keys))
        if self.rngs and keys:
            kwargs = {"rngs": keys, **kwargs}
        if self.state:
            out, state = self.module.apply(*first, *args, **kwargs)
            return out, {"state": state}
        if mutable is None or mutable is False:
            return self.module.apply(*first, *args, **kwargs), {}
        return self.module.apply(*first, *args, **{"mutable": mutable, **kwargs})


def _keys(rngs: Any) -> dict[str, Any]:
    """One new key of each stream, by name; that of `default` is for `params`."""
    if rngs is None:
        return {}
    if isinstance(rngs, Rngs):
        keys = {name: stream() for name, stream in rngs.items()}
    else:
        keys = dict(rngs) if isinstance(rngs, Mapping) else {"params": rngs}
    if "default" in keys and "params" not in keys:
        keys["params"] = keys.pop("default")
    return keys


def _one_key(keys: dict[str, Any]) -> Any:
    return keys.get("params", next(iter(keys.values()), None))
