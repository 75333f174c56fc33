"""Sharding annotations: from a Variable's `sharding=` to partition specs and named shardings.

An annotation is a tuple of axis names (or None) as long as the value has dimensions. Names may be
logical ones, mapped to the axes of a mesh by rules. Making an annotated Variable needs no mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from ..graph.rebuild import rebuild
from ..graph.walk import key_name
from ..objects import arguments as fit
from ..objects.errors import path_string
from ..objects.metadata import with_metadata
from ..objects.modes import Switch
from ..objects.placing import check_fit, mesh_set, placed_by_annotation, spec_of, whole_where_free
from ..objects.type_names import T
from ..objects.variable import Variable, make_variable
from ..objects.watch import is_array
from .layouts import leaves_of
from .mapping import map_leaves

PARTITION_NAME = "partition_name"
"""The key of `transform_metadata` that says which axis name a transform adds or removes."""


@fit.checked
def with_partitioning(
    initializer: Callable[..., Any], sharding: Any, mesh: fit.AnyMesh | None = None, **metadata: Any
) -> Callable[..., Any]:
    """An initializer whose Variable is annotated with these axis names, a spec or a sharding."""
    if mesh is not None:
        metadata["mesh"] = mesh
    if not isinstance(sharding, jax.sharding.Sharding):
        sharding = tuple(sharding)
    return with_metadata(initializer, out_sharding=sharding, **metadata)


def get_var_pspec(v: Any) -> PartitionSpec:
    """The partition spec that a Variable's annotation says, by the rules; `P()` without one."""
    return spec_of(v._metadata) if isinstance(v, Variable) else PartitionSpec()


@fit.checked
def with_sharding_constraint(x: T, axis_resources: Any, mesh: fit.AnyMesh | None = None) -> T:
    """`x` placed on the mesh that is set, by names; without a mesh, `x` as it is.

    Args:
        x: an array, a State, or another pytree of arrays.
        axis_resources: axis names, which may be logical, or a spec or sharding; or a tree of them,
            as `nnx.get_partition_spec(state)` is; None to leave `x` as it is.
        mesh: another mesh than the one that is set.

    Example:
        >>> from refax import nnx
        >>> import jax, jax.numpy as jnp
        >>> with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        ...     y = jax.jit(lambda x: nnx.with_sharding_constraint(x, ("data",)))(jnp.ones(2))
        >>> tuple(y.sharding.spec)
        ('data',)
    """

    def placed(spec: Any, part: Any) -> Any:
        said = {"sharding": spec, "mesh": mesh}
        place = partial(placed_by_annotation, metadata=said, name="An array", eager_sharding=True)
        return part if spec is None else jax.tree.map(place, part)

    return jax.tree.map(placed, axis_resources, x, is_leaf=_is_spec)


def _is_spec(x: Any) -> bool:
    names = type(x) is tuple and all(isinstance(name, (str, tuple, type(None))) for name in x)
    return names or isinstance(x, (PartitionSpec, jax.sharding.Sharding, type(None)))


def _map_leaves(tree: Any, f: Callable[[Any], Any]) -> Any:
    """The same tree, States and objects in it too, with `f(leaf)` for each Variable and array."""

    def of_node(node: Any) -> Any:
        graphdef, leaves = leaves_of(node)
        return rebuild(graphdef, list(map(f, leaves)))[0]

    return map_leaves(tree, f, of_node)


def _map_variables(tree: Any, f: Callable[[Any], Any]) -> Any:
    """The same tree with each Variable's value replaced by `f(variable)`."""
    return _map_leaves(tree, lambda x: x.replace(f(x)) if isinstance(x, Variable) else f(x))


def as_abstract(tree: T, graph: Switch = None) -> T:
    """The same tree with a `jax.ShapeDtypeStruct` in the place of every array, with its sharding.

    The sharding of an annotated Variable is that of its annotation on the mesh that is set; of any
    other array, its own. What a checkpoint library is told to restore, and where.

    Example:
        >>> from refax import nnx
        >>> layer = nnx.as_abstract(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        >>> type(layer).__name__, type(layer.kernel.value).__name__, layer.kernel.shape
        ('Linear', 'ShapeDtypeStruct', (2, 3))
    """
    mesh = mesh_set()
    if not mesh.empty:
        check_annotations(tree, mesh)

    def of_array(x: Any, sharding: Any) -> Any:
        if not is_array(x) or not hasattr(x, "shape"):
            return x
        sharding = sharding if sharding is not None else getattr(x, "sharding", None)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    def of_leaf(leaf: Any) -> Any:
        if not isinstance(leaf, Variable):
            return jax.tree.map(lambda x: of_array(x, None), leaf)
        annotated = "sharding" in leaf._metadata and not mesh.empty
        sharding = named_sharding_of(leaf, mesh) if annotated else None
        value = jax.tree.map(lambda x: of_array(x, sharding), leaf._value)
        return make_variable(type(leaf), value, leaf._metadata)

    return _map_leaves(tree, of_leaf)


abstract_with_sharding = as_abstract


def get_partition_spec(tree: Any) -> Any:
    """The same object, State or tree with a `PartitionSpec` in the place of each value.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> v = nnx.Param(jnp.ones((2, 3)), sharding=("data", None))
        >>> tuple(nnx.get_partition_spec(v).value)
        ('data', None)
    """
    return _map_variables(tree, get_var_pspec)


@fit.checked
def get_named_sharding(tree: Any, mesh: fit.AnyMesh) -> Any:
    """The same object, State or tree with a `NamedSharding` on `mesh` in the place of each value.

    It says where things belong to `jax.device_put`, and to `jax.jit` as `out_shardings`.

    Raises:
        StructureError: annotations that do not fit the mesh, or their values: all of them by path.
    """
    check_annotations(tree, mesh)
    return _map_variables(tree, lambda leaf: named_sharding_of(leaf, mesh))


def check_annotations(tree: Any, mesh: Any) -> None:
    """Raise a StructureError with all annotations that do not fit the mesh, or their values."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, Variable))
    named = [(path_string(tuple(map(key_name, path))) or type(v).__name__, v) for path, v in found]
    check_fit([(n, get_var_pspec(v), v.shape) for n, v in named if hasattr(v, "shape")], mesh)


def named_sharding_of(leaf: Any, mesh: Any) -> NamedSharding:
    """Where a Variable (or an array) belongs on a mesh, by its annotation."""
    return NamedSharding(mesh, whole_where_free(get_var_pspec(leaf)))
