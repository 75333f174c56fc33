"""Linen's nested dicts of arrays, by collection, and a Module's Variables: from one to the other.

A collection is a type of Variable ('params' → `nnx.Param`), so a Variable needs no level for its
collection: `{'params': {'dense': {'kernel': array}}}` is `model.dense['kernel']`, a Param. Should
two collections have the same name in the same place, the later one is kept as `'name:collection'`.

An array may come in a box that says how it is partitioned. Its fields become metadata of the
Variable, its axis names `sharding`, and its class is remembered, to box the value again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..graph.state import iter_leaves, nest
from ..objects.variable import Variable
from ..objects.variable_types import variable_name_from_type, variable_type_from_name

_BOX = "linen_meta_type"
_METADATA_OF_FIELD = {"names": "sharding", "rules": "sharding_rules"}
_FIELD_OF_METADATA = {name: field for field, name in _METADATA_OF_FIELD.items()}


def type_of(collection: str) -> type[Variable]:
    return variable_type_from_name(collection, allow_register=True)


def collection_of(variable: Variable) -> str:
    return variable_name_from_type(variable.type, allow_register=True)


def to_variable(collection: str, leaf: Any) -> Variable:
    """The Variable for an array of a collection, out of its box if it has one."""
    if hasattr(leaf, "to_nnx_variable"):
        return leaf.to_nnx_variable()
    if not hasattr(leaf, "unbox"):
        return type_of(collection)(leaf)
    fields: Any = {_METADATA_OF_FIELD.get(name, name): x for name, x in vars(leaf).items()}
    return type_of(collection)(fields.pop("value"), **{_BOX: type(leaf)}, **fields)


def to_leaf(variable: Variable) -> Any:
    """The value of a Variable, in the box that it came in."""
    metadata = variable.get_metadata()
    if _BOX not in metadata:
        return variable.value
    box = metadata.pop(_BOX)
    fields: Any = {_FIELD_OF_METADATA.get(name, name): x for name, x in metadata.items()}
    known = getattr(box, "__dataclass_fields__", fields)  # the user may have added others
    return box(value=variable.value, **{name: fields[name] for name in fields if name in known})


def into(old: Any, collection: str, new: Any, keep: bool) -> Any:
    """What stands in place of `old` when `new`, a collection or a part of it, is written there.

    Variables that are there already get the values (or, with `keep`, stay as they are); dicts are
    made anew where a name is added.
    """
    if not isinstance(new, Mapping):
        variable = to_variable(collection, new)
        if not isinstance(old, Variable) or old.type is not variable.type:
            return variable
        if not keep and old.raw_value is not variable.raw_value:
            old.value = variable.raw_value
        return old
    result = dict(old) if isinstance(old, Mapping) else {}
    for name, part in new.items():
        key = key_for(result, name, collection, part)
        result[key] = into(result.get(key), collection, part, keep)
    same = isinstance(old, Mapping) and old.keys() == result.keys()
    return old if same and all(old[key] is result[key] for key in result) else result


def key_for(names: Mapping[Any, Any], name: Any, collection: str, part: Any) -> Any:
    """The key of `part`: its name, unless that is taken by another collection."""
    there = names.get(name)
    if isinstance(part, Mapping):
        taken = isinstance(there, Variable)
    else:
        taken = there is not None and type(there) is not type_of(collection)
    return f"{name}:{collection}" if taken else name


def collections(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """The nested dicts by collection of a Module's attributes, and of dicts inside them."""
    found: list[tuple[tuple, Any]] = []
    for path, variable in iter_leaves(attributes):
        if isinstance(variable, Variable):
            collection = collection_of(variable)
            names = (_name_of(key, collection) for key in path)
            found.append(((collection, *names), to_leaf(variable)))
    return nest(found)


def _name_of(key: Any, collection: str) -> Any:
    return key.removesuffix(f":{collection}") if isinstance(key, str) else key
