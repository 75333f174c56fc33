"""A run on disk: its folder, and checkpoints from which it goes on bit for bit.

    run.json            what the run is: its settings and the fingerprint of its corpus
    checkpoints/<step>  model, optimizer, metrics, the data position and the losses so far
    loss.csv, loss.png, sample.txt

A checkpoint carries a fingerprint of each of its arrays, so damage is noticed before any of it is
used.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@contextlib.contextmanager
def checkpoints_of(run: Path) -> Iterator[nnx.Checkpoints]:
    """The saved steps of a run; what goes wrong with them ends the program with one line."""
    try:
        with nnx.Checkpoints(run / "checkpoints", keep=KEPT_CHECKPOINTS) as checkpoints:
            yield checkpoints
    except (nnx.WeightsFileError, FileNotFoundError) as error:
        raise DemoError("; ".join(str(error).splitlines())) from error
    except OSError as error:  # such as a full disk
        raise DemoError(f"cannot save a checkpoint to {run / 'checkpoints'}: {error}") from error
