"""Folders that orbax has written: the arrays that stand in them, by path.

Flax's users keep a State there, or the dicts of one, whole as `folder` or as one item of several,
`folder/params`. A State has each array in a box of its own, `kernel/value`, which is taken off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..graph.walk import key_name
from ..objects.entering import is_key
from .places import Place

Keys = tuple[str, ...]
_BOXES = ("value", "raw_value")


def trees_in(folder: Path) -> dict[str, Path]:
    """The trees of arrays by name: the folder itself as "", else those of its items."""
    trees = {"": folder} | {x.name: x for x in sorted(folder.iterdir()) if x.is_dir()}
    trees = {name: path for name, path in trees.items() if (path / "_METADATA").is_file()}
    return {"": folder} if "" in trees else trees


def notes_in(folder: Path) -> dict[str, Any]:
    """The items that are JSON, by name."""
    files = [x / "metadata" for x in sorted(folder.iterdir()) if x.is_dir()]
    return {x.parent.name: json.loads(x.read_text("utf-8")) for x in files if x.is_file()}


def keys_of(path: Any) -> Keys:
    return tuple(str(key_name(key)) for key in path)


def read_tree(
    folder: Path, known: Mapping[Keys, Place], head: Keys = (), boxes: bool = True
) -> dict[Keys, Any]:
    """The arrays of a tree by path, each where it belongs; random keys as their data.

    Args:
        folder: of the tree.
        known: the places of the object by path.
        head: the path of the tree in the object.
        boxes: whether arrays may stand in boxes.
    """
    import orbax.checkpoint as ocp

    # Each process for itself, so that none waits for one with an error.
    me = jax.process_index()
    alone: Any = ocp.options.MultiprocessingOptions(me, {me}, f"process_{me}")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        tree = checkpointer.metadata(folder).item_metadata.tree
        paths = [head + keys_of(path) for path, _ in jax.tree.leaves_with_path(tree)]
        # An array of the object may be called "value" itself.
        boxes = boxes and all(path[-1] in _BOXES and path not in known for path in paths)
        paths = [path[: -1 if boxes else None] for path in paths]
        args = jax.tree.structure(tree).unflatten([_how(known.get(path), ocp) for path in paths])
        read = checkpointer.restore(folder, args=ocp.args.PyTreeRestore(restore_args=args))
    return dict(zip(paths, jax.tree.leaves(read), strict=True))


def _how(place: Place | None, ocp: Any) -> Any:
    """How orbax restores an array: where it belongs, or on the host, if it belongs nowhere."""
    sharding = None if place is None or is_key(place.value) else place.sharding
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=sharding)
