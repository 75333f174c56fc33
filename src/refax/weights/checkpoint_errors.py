"""Errors of `Checkpoints`: each names the folder, the step, and the cure."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..objects.errors import GraphError
from .file_errors import WeightsFileError, newer, same_name

__all__ = ["WeightsFileError", "newer", "same_name"]

_FULL = ("No space left", "ENOSPC", "RESOURCE_EXHAUSTED", "File too large")


def check_notes(notes: Mapping[str, Any], best: str) -> None:
    for name, value in notes.items():
        try:
            json.dumps({name: value})
            if name == "refax":
                raise TypeError("the name is taken")
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"nnx.Checkpoints.save: notes[{name!r}] is no JSON ({error}).\n"
                "Cure: numbers, texts, lists and dicts: float(loss), array.tolist()."
            ) from None
    if best and best not in notes:
        raise ValueError(
            f"nnx.Checkpoints.save: the best step is told by the note {best!r}, which is not among "
            f"{list(notes)}.\nCure: notes={{{best!r}: …}} at every save."
        )


def traced(verb: str) -> ValueError:
    return GraphError(
        f"nnx.{verb}: inside a function that is being traced, such as by jit: files are read and "
        "written when a program runs.\nCure: call it outside of that function."
    )


def saved_already(folder: Path, step: int) -> FileExistsError:
    return FileExistsError(
        f"nnx.Checkpoints.save: step {step} is in {folder} already.\n"
        "Cure: `if step not in checkpoints.steps()`, or another folder for another run."
    )


def no_step(folder: Path, step: int | None, steps: Sequence[int]) -> FileNotFoundError:
    what = "no step" if step is None else f"no step {step}"
    has = f"it has {list(steps)}" if steps else "it is empty"
    return FileNotFoundError(
        f"nnx.Checkpoints.restore: there is {what} in {folder}; {has}.\n"
        "Cure: one of `checkpoints.steps()`; for a new run, begin without restoring."
    )


def not_the_same(verb: str) -> ValueError:
    return GraphError(
        f"nnx.{verb}: the objects do not have the same names, shapes, dtypes and shardings on all "
        "processes.\nCure: nnx.assert_equal_on_hosts(objects) tells what differs."
    )


def other_arrays(names: Sequence[str]) -> WeightsFileError:
    shown = (
        ", ".join(f"`{name.replace('/', '.')}`" for name in names[:3]) or "more arrays than saved"
    )
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return WeightsFileError(f"not as it was written: {shown}{more}")


def damaged(folder: Path, step: int, reason: str, good: int | None) -> WeightsFileError:
    cure = (
        f"restore(…, step={good}), the latest step that is not; delete the folder of step {step}"
        if good is not None
        else "there is no earlier step that can be read: begin again in another folder"
    )
    return WeightsFileError(f"{folder / str(step)}: the step is damaged: {reason}.\nCure: {cure}.")


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A full disk is an OSError, whatever the libraries below make of it; no debris stays."""
    try:
        yield
    except Exception as error:
        for unfinished in folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        text = str(error)
        if isinstance(error, OSError) or not any(sign in text for sign in _FULL):
            raise
        what = f"nnx.Checkpoints.save: the disk is full ({text[:200]})"
        raise OSError(errno.ENOSPC, what) from error
