"""Rows for files: saving and loading 1 GB of weights, time and memory.

The floor is safetensors alone, on NumPy's arrays, brought to the disk as refax brings it there:
no checksums, no names of objects, no temporary file; for saving, in a row of its own, also as
it is, when what it wrote may be in the memory of the system alone. Beside it stand orbax, with
which Flax's users save, in the column of Flax, Equinox's `tree_serialise_leaves`, and in rows
of their own `torch.save` and `torch.load`, where PyTorch is installed.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .harness import Bound, Row, Work, told_by_fresh_interpreter

_WIDTH, _LAYERS = 2048, 60  # 60 matrices of 16 MiB: 1.007 GB


def rows() -> Iterator[Row]:
    for verb in SIDES:
        yield Files(verb)
        if verb == "save":
            yield Files(verb, "safetensors")
        if _is_there("torch"):
            yield Files(verb, "torch")
        yield Memory(verb)


# -- what a side does: a function of (folder, arrays) to save, of (folder, like) to load ----------


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _safetensors_save(folder: Path, arrays: dict[str, jax.Array]) -> None:
    _safetensors_save_to_memory(folder, arrays)
    _to_disk(folder / "x.safetensors")


def _safetensors_save_to_memory(folder: Path, arrays: dict[str, jax.Array]) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.asarray(x) for name, x in arrays.items()}, folder / "x.safetensors")


def _safetensors_load(folder: Path, like: Any) -> Any:
    from safetensors.numpy import load_file

    return {name: jnp.asarray(x) for name, x in load_file(folder / "x.safetensors").items()}


def _refax_save(folder: Path, arrays: dict[str, jax.Array]) -> None:
    from refax import nnx

    nnx.save(folder / "refax.safetensors", nnx.State(arrays), overwrite=True)


def _refax_load(folder: Path, like: Any) -> Any:
    from refax import nnx

    state = nnx.State(like)
    nnx.load(folder / "refax.safetensors", state)
    return nnx.state_dict(state)


def _orbax_save(folder: Path, arrays: dict[str, jax.Array]) -> None:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "orbax", arrays, force=True)


def _orbax_load(folder: Path, like: Any) -> Any:
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "orbax", like)


def _equinox_save(folder: Path, arrays: dict[str, jax.Array]) -> None:
    import equinox as eqx

    eqx.tree_serialise_leaves(folder / "x.eqx", arrays)
    _to_disk(folder / "x.eqx")


def _equinox_load(folder: Path, like: Any) -> Any:
    import equinox as eqx

    return eqx.tree_deserialise_leaves(folder / "x.eqx", like)


def _torch_save(folder: Path, arrays: dict[str, jax.Array]) -> None:
    import torch

    tensors = {name: torch.from_dlpack(x) for name, x in arrays.items()}
    torch.save(tensors, folder / "x.pt")
    _to_disk(folder / "x.pt")


def _torch_load(folder: Path, like: Any) -> Any:
    import torch

    loaded = torch.load(folder / "x.pt", weights_only=True)
    return {name: jnp.from_dlpack(x) for name, x in loaded.items()}


SIDES: dict[str, dict[str, Callable[..., Any]]] = {
    "save": {
        "floor": _safetensors_save,
        "refax": _refax_save,
        "flax": _orbax_save,
        "equinox": _equinox_save,
        "torch": _torch_save,
        "safetensors": _safetensors_save_to_memory,
    },
    "load": {
        "floor": _safetensors_load,
        "refax": _refax_load,
        "flax": _orbax_load,
        "equinox": _equinox_load,
        "torch": _torch_load,
    },
}


# -- the rows ------------------------------------------------------------------------------------


@cache
def arrays() -> dict[str, jax.Array]:
    matrix = np.random.default_rng(0).normal(size=(_WIDTH, _WIDTH)).astype(np.float32)
    return {f"layers_{i}": jnp.asarray(matrix + i) for i in range(_LAYERS)}


def like() -> dict[str, jax.ShapeDtypeStruct]:
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    form = jax.ShapeDtypeStruct((_WIDTH, _WIDTH), jnp.float32, sharding=where)
    return {f"layers_{i}": form for i in range(_LAYERS)}


@cache
def folder_with_files() -> Path:
    """A folder with what every side has saved; at the end it is deleted."""
    folder = Path(tempfile.mkdtemp(prefix="refax-benchmarks-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, save in SIDES["save"].items():
        if _is_there(name):
            save(folder, arrays())
    return folder


def _is_there(side: str) -> bool:
    library = {"floor": "safetensors", "flax": "orbax"}.get(side, side)
    return importlib.util.find_spec(library) is not None


class Files(Row):
    slow = True
    bound = Bound(1.2)

    def __init__(self, verb: str, floor: str = "floor"):
        beside = "" if floor == "floor" else f", beside {floor}.{verb}"
        self.name = f"{verb} 1 GB of weights{beside}"
        self._verb, self._floor = verb, floor
        if beside:
            self.bound = Bound()

    def side(self, name: str) -> Work | None:
        name = self._floor if name == "floor" else name
        if not _is_there(name) or self._floor != "floor" and name in ("flax", "equinox"):
            return None
        do, folder = SIDES[self._verb][name], folder_with_files()
        if self._verb == "save":

            def work() -> int:
                do(folder, arrays())
                return 0
        else:

            def work() -> Any:
                loaded = jax.block_until_ready(do(folder, like()))
                return [loaded[name][0, 0] for name in sorted(loaded)]

        return work


class Memory(Row):
    """What is taken at most, in a process of its own, beside the model itself."""

    slow = gives_value = True
    min_rounds, unit = 1, "B"
    bound = Bound(value=1.1 * 4 * _LAYERS * _WIDTH**2)

    def __init__(self, verb: str):
        self.name = f"memory beside the model to {verb} 1 GB of weights"
        self._verb = verb

    def side(self, name: str) -> Work | None:
        if not _is_there(name):
            return None
        call = f"tell_memory({self._verb!r}, {name!r}, {str(folder_with_files())!r})"
        return lambda: told_by_fresh_interpreter(f"from benchmarks.rows_files import *\n{call}")


def tell_memory(verb: str, side: str, folder: str) -> None:
    given = arrays() if verb == "save" else like()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _kilobytes("VmRSS")
    kept = jax.block_until_ready(SIDES[verb][side](Path(folder), given))
    model = 4 * _LAYERS * _WIDTH**2 if verb == "load" else 0
    peak = 1024 * (_kilobytes("VmHWM") - before) - model
    del kept
    print(peak)


def _kilobytes(what: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(what)).split()[1])
