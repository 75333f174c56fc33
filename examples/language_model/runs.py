"""A run on disk: its folder, and checkpoints from which it goes on bit for bit.

    run.json            what the run is: its settings and the fingerprint of its corpus
    checkpoints/<step>  model, optimizer, metrics (orbax), the data position and the losses so far
    loss.csv, loss.png, sample.txt

A checkpoint carries a checksum over all of its arrays, so damage is noticed before any of it is
used.
"""

import hashlib
import json
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from refax import nnx

from .errors import DemoError, UsageError

FORMAT = "refax example: language model (1)"
DEFAULT_ROOT = Path("out/language_model")
FILES = ("run.json", "checkpoints", "loss.csv", "loss.png", "sample.txt")
KEPT_CHECKPOINTS = 3


# -- folders -------------------------------------------------------------------------------------


def numbered_runs(root: Path) -> list[Path]:
    """The folders 001, 002, … below `root`, in order."""
    found = root.iterdir() if root.is_dir() else ()
    return sorted((p for p in found if p.name.isdecimal()), key=lambda p: int(p.name))


def find_run(out: Path | None) -> Path:
    """The folder of a run to go on with: `out`, or the latest numbered one."""
    if out is not None:
        return out
    runs = numbered_runs(DEFAULT_ROOT)
    if not runs:
        raise DemoError(f"there is no run in {DEFAULT_ROOT} to resume: begin one without --resume")
    return runs[-1]


def check_free(out: Path | None, overwrite: bool) -> None:
    """Raise unless a new run may be written to `out`; nothing is changed."""
    if out is None or not out.exists():
        return
    if not out.is_dir():
        raise DemoError(f"--out: {out} is a file, not a folder")
    if not any(out.iterdir()):
        return
    if not _is_run(out):
        raise DemoError(f"--out: {out} holds something else than a run: name another folder")
    if not overwrite:
        raise UsageError(
            f"{out} holds a run already: --resume goes on with it, --overwrite deletes it, another "
            "--out keeps both"
        )


def make_folder(out: Path | None) -> Path:
    """The empty folder of a new run: `out`, cleared of the run there, or the next numbered one."""
    try:
        if out is None:
            runs = numbered_runs(DEFAULT_ROOT)
            number = int(runs[-1].name) + 1 if runs else 1
            out = DEFAULT_ROOT / f"{number:03}"
        out.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            file = out / name
            shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
    except OSError as error:
        raise DemoError(f"cannot write to {out}: {error.strerror}") from error
    return out


def _is_run(folder: Path) -> bool:
    try:
        return json.loads((folder / "run.json").read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def write_description(run: Path, settings: dict[str, Any], corpus: str) -> None:
    """Write `run.json`, whole or not at all."""
    text = json.dumps({"format": FORMAT, "settings": settings, "corpus": corpus}, indent=2)
    unfinished = run / "run.json.new"
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(run / "run.json")


def read_description(run: Path) -> dict[str, Any]:
    """What `run.json` says: `settings` and the fingerprint of the `corpus`."""
    if not _is_run(run):
        raise DemoError(f"{run} holds no run of this program (no run.json, or not one of its own)")
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


# -- checkpoints ---------------------------------------------------------------------------------


class Checkpoints:
    """The checkpoints of a run; a context manager, since orbax has threads to end."""

    def __init__(self, run: Path):
        self.folder = (run / "checkpoints").absolute()
        # Written before training goes on: the next step reuses the memory of these arrays.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT_CHECKPOINTS, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._manager.close()

    def save(self, step: int, objects: Any, notes: dict[str, Any]) -> None:
        """Save the state of `objects` and some JSON, whole or not at all; once for each step.

        Args:
            objects: modules, optimizers, … in any container.
        """
        if step in self._manager.all_steps():
            return
        state = nnx.state(objects)
        parts = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            notes=ocp.args.JsonSave({**notes, "checksum": checksum(state)}),
        )
        try:
            self._manager.save(step, args=parts)
        except (OSError, ValueError) as error:  # such as a full disk
            raise DemoError(f"cannot save a checkpoint to {self.folder}: {error}") from error

    def restore_latest(self, objects: Any) -> dict[str, Any]:
        """Write the latest checkpoint into `objects`, in place, and return its JSON.

        Raises:
            DemoError: there is none, or it is damaged; the objects are as before.
        """
        step = self._manager.latest_step()
        if step is None:
            raise DemoError(f"{self.folder} holds no checkpoint: begin again with --overwrite")
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(nnx.state(objects)), notes=ocp.args.JsonRestore()
                ),
            )
            notes, state = restored["notes"], restored["state"]
        except Exception as error:  # a damaged file makes orbax raise almost anything
            raise self._damaged(step, "it cannot be read") from error
        if notes.get("checksum") != checksum(state):
            raise self._damaged(step, "its checksum does not match")
        nnx.update(objects, jax.tree.map(_uncommitted, state))
        return notes

    def _damaged(self, step: int, reason: str) -> DemoError:
        earlier = [s for s in self._manager.all_steps() if s < step]
        cure = (
            f"delete that folder to go on from step {max(earlier)}"
            if earlier
            else "there is no earlier one: begin again with --overwrite"
        )
        return DemoError(f"the checkpoint {self.folder / str(step)} is damaged ({reason}); {cure}")


def _uncommitted(array: jax.Array) -> jax.Array:
    """A copy that JAX may place where it likes, as it may new arrays.

    orbax ties arrays to their device, and functions compile once more for those.
    """
    if _is_key(array):
        data = _uncommitted(jax.random.key_data(array))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    return jnp.array(np.asarray(array))


def _is_key(array: jax.Array) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def checksum(state: nnx.State) -> str:
    """Over the paths, types and bytes of all arrays."""
    digest = hashlib.sha256()
    for path, variable in nnx.to_flat_state(state):
        value = variable.value
        array = np.asarray(jax.random.key_data(value) if _is_key(value) else value)
        digest.update(repr((path, array.dtype.name, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
