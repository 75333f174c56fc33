"""ToLinen: a Linen module around the maker of a Module. The one file that imports Flax, if used.

A Linen module is a recipe: its arrays come from outside at each call, so the Module is made at each
call too, as shapes alone, and gets the arrays. Only what is missing and may be made (in `init`, or
in a collection that is mutable) is computed.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax

from ..graph.filters import Not
from ..graph.state import iter_leaves, nest, state_over
from ..objects.errors import StructureError, path_string
from ..objects.metadata import Metadata
from ..objects.variable import Variable, make_variable
from ..objects.variable_types import Intermediate, RngState
from ..transforms.eval_shape import eval_shape
from ..verbs.names import get_path
from ..verbs.popping import sown_attribute, sown_path
from ..verbs.rngs import Rngs, iter_streams, reseed
from ..verbs.splitting import state
from ..verbs.spmd import PARTITION_NAME, get_partition_spec
from ..verbs.updating import update
from .linen_variables import collection_of, to_variable, type_of

ARRAYS = "arrays"
"""The collection of the arrays that are plain attributes of a Module."""


def to_linen_var(variable: Variable) -> Any:
    """What Linen gets for a Variable: its value, boxed if there is metadata to keep."""
    value, metadata = variable.raw_value, variable.raw_metadata
    return linen_classes()["NNXMeta"](variable.type, value, metadata) if metadata else value


@functools.cache
def linen_classes() -> dict[str, Any]:
    """`ToLinen` and `NNXMeta`, made when one of them is used first: Flax is imported for them."""
    from flax import errors, linen, struct
    from flax.core import FrozenDict, meta

    class NNXMeta(struct.PyTreeNode, meta.AxisMetadata[Any]):
        """A Linen box that keeps the type and the metadata of a Variable beside its value."""

        __qualname__ = "NNXMeta"

        var_type: type[Variable] = struct.field(pytree_node=False)
        value: Any = struct.field(pytree_node=True)
        metadata: Mapping[str, Any] = struct.field(pytree_node=False)

        def __post_init__(self) -> None:
            if not isinstance(self.metadata, Metadata):  # hashable, as what is static must be
                object.__setattr__(self, "metadata", Metadata(self.metadata))

        def unbox(self) -> Any:
            return self.value

        def replace_boxed(self, val: Any) -> NNXMeta:
            return self.replace(value=val)

        def add_axis(self, index: int, params: dict[Any, Any]) -> NNXMeta:
            return self._with_axes(lambda names: names.insert(index, params.get(PARTITION_NAME)))

        def remove_axis(self, index: int, params: dict[Any, Any]) -> NNXMeta:
            return self._with_axes(lambda names: names.pop(index))

        def _with_axes(self, change: Callable[[list[Any]], Any]) -> NNXMeta:
            if not isinstance(self.metadata.get("sharding"), tuple):
                return self
            change(names := list(self.metadata["sharding"]))
            return self.replace(metadata={**self.metadata, "sharding": tuple(names)})

        def get_partition_spec(self) -> jax.sharding.PartitionSpec:
            return get_partition_spec(self.to_nnx_variable()).value

        def to_nnx_variable(self) -> Variable:
            return make_variable(self.var_type, self.value, Metadata(self.metadata))

    class ToLinen(linen.Module):
        """A Module as a Linen module: `init` makes its variables, `apply` runs it with given ones.

        The collection of a Variable is the registered name of its type, that of a plain array
        'arrays'; random streams get Linen's keys of their names at each call ('params' where there
        is no such key). `model.bind(variables).encode(x)`, `apply(…, nnx_method='encode')` and
        `apply(…, method='encode')` run another method than `__call__`.

        Args:
            nnx_class: makes the Module: `nnx_class(*args, rngs=…, **kwargs)`.
            args, kwargs: its arguments.
            skip_rng: do not give it `rngs`.
            metadata_fn: Variable → what Linen gets; None for bare values.
            abstract_init: make the Module as shapes alone where every array is given.
        """

        __qualname__ = "ToLinen"

        nnx_class: Callable[..., Any]
        args: Sequence[Any] = ()
        kwargs: Mapping[str, Any] = FrozenDict({})
        skip_rng: bool = False
        metadata_fn: Callable[[Variable], Any] | None = to_linen_var
        abstract_init: bool = True

        @linen.compact
        def __call__(
            self, *args: Any, nnx_method: Callable[..., Any] | str | None = None, **kwargs: Any
        ) -> Any:
            module = _module_of(self)
            unseeded = _seed(self, module)
            made = _leaves(module) if self.is_initializing() else {}
            given = callable(nnx_method)
            run = (
                partial(nnx_method, module) if given else getattr(module, nnx_method or "__call__")
            )
            out = run(*args, **kwargs)
            for stream, count in unseeded:
                if stream.count.raw_value is not count:
                    raise errors.InvalidRngError(
                        f"{type(module).__name__} draws from its stream {stream.tag!r}, and there "
                        "is no key for it.\nCure: apply(variables, …, rngs={'dropout': key}), by "
                        "the name that the Module takes from its rngs; 'params' stands in for "
                        "others."
                    )
            # `init` returns the variables as they were made, with those that the call added.
            _store(self, {**_leaves(module), **made})
            return out

        def __getattr__(self, name: str) -> Any:
            if not callable(getattr(vars(self).get("nnx_class"), name, None)):
                return super().__getattr__(name)

            def run(self: ToLinen, *args: Any, **kwargs: Any) -> Any:
                return self(*args, nnx_method=name, **kwargs)

            return types.MethodType(run, self)

    return {"NNXMeta": NNXMeta, "ToLinen": ToLinen}


def __getattr__(name: str) -> Any:
    if name not in ("NNXMeta", "ToLinen"):
        raise AttributeError(f"{__name__} has no name {name!r}")
    return linen_classes()[name]


def to_linen(
    nnx_class: Callable[..., Any],
    *args: Any,
    metadata_fn: Callable[[Variable], Any] | None = to_linen_var,
    name: str | None = None,
    skip_rng: bool = False,
    abstract_init: bool = True,
    **kwargs: Any,
) -> Any:
    """`ToLinen` with the arguments of the Module given as they are.

    Example:
        >>> from refax import nnx
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = nnx.bridge.to_linen(nnx.Linear, 2, out_features=3)
        >>> variables = model.init(jax.random.key(0), jnp.ones(2))
        >>> jax.tree.map(jnp.shape, variables)
        {'params': {'bias': (3,), 'kernel': (2, 3)}}
        >>> model.apply(variables, jnp.ones(2)).shape
        (3,)
    """
    from flax.core import FrozenDict

    fields = (nnx_class, args, FrozenDict(kwargs), skip_rng, metadata_fn, abstract_init)
    return linen_classes()["ToLinen"](*fields, name=name)


_Leaves = dict[tuple, Any]  # path → Variable or array


def _leaves(module: Any) -> _Leaves:
    return dict(iter_leaves(state(module, Not(RngState))))


def _collection(leaf: Any) -> str:
    return collection_of(leaf) if isinstance(leaf, Variable) else ARRAYS


def _module_of(linen_module: Any) -> Any:
    """The Module with the arrays that Linen has for it."""

    def make(rngs: Rngs) -> Any:
        options = {} if linen_module.skip_rng else {"rngs": rngs}
        return linen_module.nnx_class(*linen_module.args, **linen_module.kwargs, **options)

    names = linen_module.scope.rngs if linen_module.scope is not None else {}
    module = eval_shape(lambda: make(Rngs(0, **dict.fromkeys(names, 0))))
    given = linen_module.variables
    found, missing = {}, []
    for path, leaf in _leaves(module).items():
        collection = _collection(leaf)
        value = _find(given.get(collection, {}), path)
        if value is not None:
            found[path] = value.unbox() if hasattr(value, "unbox") else value
        elif collection == ARRAYS or linen_module.is_mutable_collection(collection):
            missing.append(path)
        else:
            raise StructureError(
                f"{type(module).__name__}: no value for `{path_string(path)}` in the collection "
                f"{collection!r} of the variables.\nCure: pass the variables that `init` returned, "
                "or make the collection mutable, for the Module to begin it."
            )
    if missing or not linen_module.abstract_init:
        keys = {name: linen_module.make_rng(name) for name in names}
        default = linen_module.make_rng("params") if "params" in names else 0
        module = make(Rngs({"default": default, **keys}))
    for path, value in _others(given, found):
        collection, *path = path
        if issubclass(type_of(collection), Intermediate):  # made on the way, by sow or perturb
            holder = get_path(module, tuple(path[:-1]))
            setattr(holder, sown_attribute(holder, path[-1]), to_variable(collection, value))
        else:
            found[tuple(path)] = value
    if found:
        update(module, state_over(nest(found.items())))
    return module


def _find(tree: Any, path: tuple) -> Any:
    """What stands at a path of nested mappings, whose keys may be texts of numbers; else None."""
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key, tree.get(str(key)))
    return tree


def _others(given: Mapping[str, Any], found: _Leaves) -> Iterator[tuple[tuple, Any]]:
    """(collection and path, value) of what the Module does not begin with."""
    known = {tuple(map(str, path)) for path in found}
    for path, value in iter_leaves(given):
        names = tuple(map(str, path[1:]))
        if not any(names[:length] in known for length in range(len(names) + 1)):
            yield path, value


def _seed(linen_module: Any, module: Any) -> list[tuple[Any, Any]]:
    """Give the streams Linen's keys; (stream, count) of those for which there is none."""
    streams = [stream for _, stream in iter_streams(module)]
    tags = dict.fromkeys(stream.tag for stream in streams)
    has = {t for t in tags if linen_module.has_rng(t) or linen_module.has_rng("params")}
    if tags:
        keys: dict[str, Any] = {t: linen_module.make_rng(t) if t in has else 0 for t in tags}
        reseed(module, **keys)
    return [(stream, stream.count.raw_value) for stream in streams if stream.tag not in has]


def _store(linen_module: Any, leaves: _Leaves) -> None:
    """Hand the leaves to Linen, those of the collections that are mutable."""
    boxed = linen_module.metadata_fn or (lambda variable: variable.raw_value)
    pairs: dict[str, list[tuple[tuple, Any]]] = {}
    for path, leaf in leaves.items():
        collection = _collection(leaf)
        if linen_module.is_mutable_collection(collection):
            value = boxed(leaf) if isinstance(leaf, Variable) else leaf
            pairs.setdefault(collection, []).append((sown_path(path), value))
    for collection in pairs:
        for name, value in nest(pairs[collection]).items():
            linen_module.put_variable(collection, name, value)
