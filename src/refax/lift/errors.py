"""Errors of the lift: aliases with two prefixes, prefixes that do not fit, leaves left over."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax.tree_util import keystr

from ..objects.errors import GraphError, clipped, path_string


class PrefixError(GraphError):
    """A prefix (`in_axes`, `in_shardings`, `argnums`, …) does not fit what it stands for."""


class AliasError(PrefixError):
    """One Variable is reached in several places that have different prefixes."""


def argument_names(f: Callable, count: int) -> list[str]:
    """The names of the first `count` positional parameters, for messages."""
    names: list[str] = []
    try:
        for parameter in inspect.signature(f).parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                names += [f"{parameter.name}[{i}]" for i in range(count - len(names))]
            elif parameter.kind is not parameter.KEYWORD_ONLY:
                names.append(parameter.name)
    except (TypeError, ValueError):
        pass
    return [*names, *(f"args[{i}]" for i in range(len(names), count))][:count]


def argument_place(path: Iterable[Any], labels: Sequence[str]) -> str:
    """The place of a JAX path in (args, kwargs): `model`, `batch['x']`."""
    kind, first, *below = path
    name = labels[first.idx] if kind.idx == 0 else str(first.key)
    return f"{name}{keystr(tuple(below))}"


def place_under(path: Sequence[Any], roots: Sequence[str]) -> str:
    """The place of a path of a GraphDef, which starts with a root's number if there are several."""
    if len(roots) > 1:
        return path_string(path[1:], str(roots[path[0]]))
    return path_string(path, str(roots[0]) if roots else "")


def inconsistent_alias(node_type: type, places: Sequence[tuple[str, Any]]) -> AliasError:
    listed = "\n".join(f"  {place}: {clipped(repr(prefix), 150)}" for place, prefix in places[:6])
    return AliasError(
        "Inconsistent aliasing detected. The following nodes have different prefixes:\n"
        f"Node: {node_type}\n{listed}\n"
        "One Variable can go through a transform in one way only. Cure: give all of its places the "
        "same prefix, or pass a copy in one of them (nnx.clone)."
    )


def no_entry(place: str, value: Any, prefix: Any) -> PrefixError:
    return PrefixError(
        f"No filter of {clipped(repr(prefix), 600)} matches `{place}`, a {type(value).__name__}.\n"
        "Cure: add a filter for it, or `...: None` as the last entry for all that is left."
    )


def prefix_mismatch(name: str, prefix: Any, detail: Exception | str) -> PrefixError:
    text = str(detail).replace("tree_map_with_path tree", name)  # how JAX calls any prefix
    return PrefixError(
        f"`{name}` is not a prefix of what it stands for: {clipped(repr(prefix), 400)}.\n"
        f"{clipped(text, 600)}\n"
        "Cure: give one entry for a whole argument, or the same containers as the argument has; an "
        "object takes one entry or a lift type (nnx.StateAxes, nnx.StateSharding, nnx.DiffState)."
    )


def unhashable_argument(place: str, value: Any) -> ValueError:
    return ValueError(
        f"The static argument `{place}` is a {type(value).__name__}, which cannot be hashed.\n"
        "Cure: pass something hashable (a tuple for a list), or make it an ordinary argument."
    )


def axis_name_mismatch(
    path: Sequence[Any], variable: Any, key: str, axis: int, name: Any
) -> PrefixError:
    return PrefixError(
        f"`{path_string(path)}`, a {type(variable).__name__} annotated "
        f"{variable._metadata[key]}, is mapped over axis {axis}, which transform_metadata "
        f"calls {name!r}.\n"
        "Cure: annotate that axis with the same name, or map the axis that has it."
    )
