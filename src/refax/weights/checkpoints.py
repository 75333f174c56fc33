"""`Checkpoints`: the saved steps of a run, in a folder, over orbax.

A step holds two items: `state`, the arrays of all objects as nested dicts (so that any reader of
orbax checkpoints reads them), and `notes`, JSON: the caller's own and, under "refax", a fingerprint
of every array. orbax writes a step beside its place and renames it when it is whole, so that a
killed save leaves the steps before; the fingerprints tell what was damaged later.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..graph.state import nest
from ..objects.arguments import Count, Size, checked
from ..objects.entering import is_key
from ..verbs.hosts import fail_together, fingerprint, said_by_all
from ..verbs.names import dotted_name
from . import checkpoint_errors as errors
from .meetings import Meetings
from .orbax_folders import notes_in, read_tree, trees_in
from .places import Place, Places
from .state_dict import load_into

_OWN = "refax"
_VERSION = 1
F = TypeVar("F", bound=Callable[..., Any])


def _checked_by_all(method: F) -> F:
    """`checked`, but an argument that one process alone has wrong ends the call of all."""

    @functools.wraps(method)
    def bind(*args: Any, **kwargs: Any) -> Any:
        return inspect.signature(method).bind(*args, **kwargs)

    check, name = checked(bind), method.__qualname__.removesuffix(".__init__")

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        with fail_together(f"nnx.{name}"):
            check(*args, **kwargs)
        return method(*args, **kwargs)

    return cast(F, call)


class Checkpoints:
    """The saved steps of a run.

    Args:
        folder: where they are, one folder a step; made if it is not there.
        keep: how many of the latest steps to keep; None keeps all.
        best: the name of a note by which the best step is kept as well: "loss" for the lowest,
            `("accuracy", "max")` for the highest.
        asynchronous: write while training goes on. The arrays are copied first where the next step
            could write into their memory, so donated arguments are no problem.

    Example:
        >>> import tempfile
        >>> from refax import nnx
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> with nnx.Checkpoints(tempfile.mkdtemp()) as checkpoints:
        ...     checkpoints.save(10, {"model": model}, notes={"epoch": 1})
        ...     other = nnx.Linear(2, 3, rngs=nnx.Rngs(1))
        ...     notes = checkpoints.restore({"model": other})
        ...     print(checkpoints.steps(), notes, bool((other.kernel == model.kernel).all()))
        [10] {'epoch': 1} True
    """

    @_checked_by_all
    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: Size | None = 3,
        best: str | tuple[str, Literal["min", "max"]] | None = None,
        asynchronous: bool = True,
    ):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        name, which = (best, "min") if isinstance(best, str) else best or ("", "min")
        policies: list[Any] = [checkpoint_managers.LatestN(keep)]
        if name:
            of, lowest = itemgetter(name), which == "min"
            policies += [checkpoint_managers.BestN(get_metric_fn=of, reverse=lowest, n=1)]
        self.folder: Path = Path(folder).absolute()
        self._best = name
        self._asynchronous = asynchronous
        self._meetings = Meetings()
        self._orbax = ocp
        # Each for itself: in orbax the others would wait for one that has an error.
        with fail_together("nnx.Checkpoints"):
            self._make_folder()
        with fail_together("nnx.Checkpoints"):
            os.scandir(self.folder).close()
        with fail_together("nnx.Checkpoints"):
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                    cleanup_tmp_directories=True,
                    async_options=ocp.AsyncOptions(barrier_sync_fn=self._meetings),
                ),
                item_handlers={
                    "state": ocp.PyTreeCheckpointHandler(),
                    "notes": ocp.JsonCheckpointHandler(),
                },
            )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps that can be restored, in order; not one that is still being written."""
        steps = self._manager.all_steps()  # orbax's list also has those whose save was interrupted
        return sorted(step for step in steps if (self.folder / str(step)).is_dir())

    def wait(self) -> None:
        """Wait until what is being written is whole.

        Raises:
            OSError: it could not be written, such as on a full disk; nothing of it is left.
        """
        with errors.writing(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """`wait`, and end the threads that write; also at the end of a `with` block."""
        try:
            self.wait()
        finally:
            self._manager.close()

    @_checked_by_all
    def save(self, step: Count, objects: Any, notes: Mapping[str, Any] | None = None) -> None:
        """Save a step: all of it or, on an error, nothing.

        Args:
            step: its number.
            objects: a model, or several objects in a container, `{"model": m, "optimizer": o}`.
            notes: JSON to keep with it, such as the position in the data.

        Raises:
            FileExistsError: the step is there already.
            TypeError: the notes are no JSON.
            OSError: it cannot be written. With `asynchronous`, this comes from the next call.
        """
        self.wait()
        verb = "Checkpoints.save"
        with fail_together(f"nnx.{verb}"):
            self._make_folder()
            if step in self.steps():
                raise errors.saved_already(self.folder, step)
            if step in self._manager.all_steps():
                self._manager.reload()
            notes = dict(notes or {})
            errors.check_notes(notes, self._best)
            places = Places(objects, ..., verb)
            places.check_written()
            _check_running(verb)
            names: set[str] = set()
            for path in [tuple(map(str, place.path)) for place in places.by_name.values()]:
                if (name := ".".join(path)) in names:  # orbax would write one over the other
                    raise errors.same_name(verb, name)
                names.add(name)
        _check_same(places)
        with fail_together(f"nnx.{verb}"):  # beginning to write is where orbax waits for all
            with tempfile.TemporaryDirectory(prefix=".refax-", dir=self.folder) as folder:
                Path(folder, "file").write_bytes(bytes(4096))
        self._meetings.begin()
        arrays, keys, empty = {}, {}, []
        for path, place in places.by_path.items():
            if is_key(place.value):
                keys["/".join(path)] = str(jax.random.key_impl(place.value))
            arrays[path] = self._as_written(place.value)
            if not arrays[path].size:
                empty.append([path, arrays[path].shape, arrays[path].dtype.name])
        own = {
            "version": _VERSION,
            "fingerprints": {"/".join(path): fingerprint(array) for path, array in arrays.items()},
            "keys": keys,
            "empty": empty,  # arrays of no size, which orbax does not take
        }
        own["checksum"] = _checksum(notes, own)
        parts = self._orbax.args.Composite(
            state=self._orbax.args.PyTreeSave(nest((p, x) for p, x in arrays.items() if x.size)),
            notes=self._orbax.args.JsonSave({**notes, _OWN: own}),
        )
        metrics = {self._best: float(notes[self._best])} if self._best else None
        with errors.writing(self.folder):
            self._manager.save(step, args=parts, metrics=metrics)
        if not self._asynchronous:
            self.wait()

    @_checked_by_all
    def restore(self, objects: Any, step: Count | None = None) -> dict[str, Any]:
        """Write a saved step into objects, in place: all of it or, on an error, nothing.

        Each array goes where the one is that it replaces, on any layout of devices.

        Args:
            objects: as given to `save`, of the same structure; they may be abstract.
            step: which; the latest by default.

        Returns:
            The notes.

        Raises:
            FileNotFoundError: there is no such step.
            WeightsFileError: (a ValueError) the step is damaged; with the array, and the latest
                step that is not.
            ValueError: names or shapes do not fit.
        """
        self.wait()
        verb = "Checkpoints.restore"
        with fail_together(f"nnx.{verb}"):
            steps = self.steps()
            if step is None:
                step = steps[-1] if steps else None
            if step is None or step not in steps:
                raise errors.no_step(self.folder, step, steps)
            places = Places(objects, ..., verb)
            _check_running(verb)
        _check_same(places)
        with fail_together(f"nnx.{verb}"), self._damage_told(step):
            if self._is_own(step):
                arrays, notes, expected = self._read(step, places.by_path)
            else:
                arrays, notes = self._read_of_others(step, places)
                expected = None
        with fail_together(f"nnx.{verb}"), self._damage_told(step):
            if expected is not None:
                _check(arrays, expected)
        names = {path: place.name for path, place in places.by_path.items()}  # also odd keys
        with fail_together(f"nnx.{verb}"):
            load_into(places, {names.get(p) or dotted_name(p): x for p, x in arrays.items()})
        return notes

    # -- inside -----------------------------------------------------------------------------------

    def _make_folder(self) -> None:
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)

    def _as_written(self, array: Any) -> Any:
        if is_key(array):
            array = jax.random.key_data(array)  # new memory
        if jax.process_count() > 1 and getattr(array, "is_fully_addressable", False):
            return np.asarray(array)  # a process's own: the first one's counts, for all
        if self._asynchronous and isinstance(array, jax.Array):
            if any(device.platform == "cpu" for device in array.devices()):
                return jnp.copy(array)  # orbax reads it where it is, which a donated step reuses
        return array

    def _read(
        self, step: int, known: Mapping[tuple, Place]
    ) -> tuple[dict[tuple, Any], dict, dict[str, int]]:
        """The arrays of a step by path, its notes, and the fingerprints that the arrays had."""
        folder = self.folder / str(step)
        notes = json.loads((folder / "notes" / "metadata").read_bytes())
        own = notes.pop(_OWN)
        if own.pop("checksum") != _checksum(notes, own):
            raise errors.WeightsFileError("the notes are not as they were written")
        if own["version"] > _VERSION:
            raise errors.newer(self.folder, own["version"], _VERSION)
        arrays = read_tree(folder / "state", known, boxes=False)
        for path, shape, dtype in own.get("empty", ()):
            arrays[tuple(path)] = np.zeros(shape, jnp.dtype(dtype))
        for path, array in arrays.items():
            if (generator := own["keys"].get("/".join(path))) is not None:
                arrays[path] = jax.random.wrap_key_data(jnp.asarray(array), impl=generator)
        return arrays, notes, own["fingerprints"]

    def _read_of_others(self, step: int, places: Places) -> tuple[dict[tuple, Any], dict]:
        """`_read` of a step of another writer: the items that the objects name, or all of it."""
        trees = trees_in(self.folder / str(step))
        named = {path[0] for path in places.by_path} & trees.keys()
        if not named and len(trees) == 1:
            arrays = read_tree(next(iter(trees.values())), places.by_path)
        else:
            arrays = {}
            for name in named or trees:
                arrays |= read_tree(trees[name], places.by_path, (name,))
        return arrays, notes_in(self.folder / str(step))

    def _is_own(self, step: int) -> bool:
        """Whether this class wrote a step, as far as can be told of one that may be damaged."""
        folder = self.folder / str(step)
        items = {x.name for x in folder.iterdir() if x.is_dir()}
        metadata = folder / "_CHECKPOINT_METADATA"  # which orbax reads too: it is there
        handlers = metadata.read_bytes()
        has_notes = "notes" in items or b"JsonCheckpointHandler" in handlers
        return has_notes and items <= {"state", "notes"} and b"StandardCheckpoint" not in handlers

    @contextlib.contextmanager
    def _damage_told(self, step: int) -> Iterator[None]:
        try:
            yield
        except errors.WeightsFileError as error:
            raise errors.damaged(self.folder, step, str(error), self._good_before(step)) from None
        except Exception as error:  # a damaged file makes orbax raise almost anything
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise errors.damaged(self.folder, step, reason, self._good_before(step)) from error

    def _good_before(self, step: int) -> int | None:
        """The latest step before that reads as it was written."""
        for earlier in reversed([s for s in self.steps() if s < step]):
            try:
                arrays, _, expected = self._read(earlier, {})
                _check(arrays, expected)
            except Exception:
                continue
            return earlier
        return None


def _check(arrays: Mapping[tuple, Any], expected: Mapping[str, int]) -> None:
    """Raise if arrays are not as they were written; all processes together."""
    data = {p: jax.random.key_data(x) if is_key(x) else x for p, x in arrays.items()}
    found = {"/".join(path): fingerprint(array) for path, array in data.items()}
    wrong = [name for name, number in expected.items() if found.get(name) != number]
    if wrong or len(found) != len(expected):
        raise errors.other_arrays(wrong)


def _check_running(verb: str) -> None:
    if isinstance(jnp.zeros(()), Tracer):
        raise errors.traced(verb)


def _check_same(places: Places) -> None:
    """Raise on all processes if they do not have the same names, shapes, dtypes and shardings."""
    if jax.process_count() == 1:
        return
    facts = [
        (name, str(x.shape), str(x.dtype), str(getattr(x.sharding, "spec", "")))
        for name, x in ((name, place.value) for name, place in places.by_name.items())
        if hasattr(x, "sharding")
    ]
    if len(set(said_by_all(str(_checksum({"": facts}))))) > 1:
        raise errors.not_the_same(places.verb)


def _checksum(*parts: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(parts, sort_keys=True).encode())
