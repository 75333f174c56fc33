"""Errors of files of weights: each names the file, the tensor where there is one, and the cure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..objects.errors import GraphError

_RESTORE = "Cure: take another copy of the file, or the checkpoint before it."


class WeightsFileError(GraphError):
    """A file of weights is damaged, cut short, of another kind or newer than this refax."""


def damaged(path: Path, what: str) -> WeightsFileError:
    return WeightsFileError(f"{path}: {what}.\n{_RESTORE}")


def damaged_tensor(path: Path, name: str, what: str) -> WeightsFileError:
    return WeightsFileError(f"{path}: the tensor `{name}` {what}.\n{_RESTORE}")


def foreign(path: Path, why: str) -> WeightsFileError:
    return WeightsFileError(
        f"{path} is no safetensors file: {why}.\n"
        "Cure: give a file that nnx.save, or another writer of safetensors, has written; other "
        "formats are read by the library that wrote them, and then by nnx.load_state_dict."
    )


def newer(path: Path, version: str, known: int) -> WeightsFileError:
    return WeightsFileError(
        f"{path} was written in version {version} of refax's format; this refax knows versions up "
        f"to {known}.\nCure: install a newer refax."
    )


def not_concrete(name: str, value: Any, verb: str = "save") -> ValueError:
    return GraphError(
        f"nnx.{verb}: `{name}` has no value that could be written: it is a {type(value).__name__}."
        f"\nCure: {verb} outside of transforms, and after an abstract model was filled in."
    )


def not_here(name: str) -> ValueError:
    return GraphError(
        f"nnx.save: `{name}` is spread over several processes; one of them cannot write it.\n"
        "Cure: nnx.Checkpoints, which all processes write together."
    )


def folder(path: Path, verb: str) -> IsADirectoryError:
    inside = sorted(x.name for x in path.glob("*.safetensors*"))[:5]
    cure = f"one of {inside}" if inside and verb != "save" else f"{path / 'model.safetensors'}"
    return IsADirectoryError(f"nnx.{verb}: {path} is a folder.\nCure: give a file, such as {cure}.")


def several_trees(path: Path, names: list[str]) -> IsADirectoryError:
    return IsADirectoryError(
        f"nnx.load: {path} has several trees of arrays: {names}.\n"
        f"Cure: one of them, {path / names[0]}; or nnx.Checkpoints({str(path.parent)!r}).restore."
    )


def exists(path: Path) -> FileExistsError:
    return FileExistsError(f"nnx.save: {path} exists already.\nCure: overwrite=True.")


def not_in_file(index: Path, name: str, file: str) -> WeightsFileError:
    return damaged(index, f"the tensor `{name}` should stand in {file}, but does not")


def no_size(size: Any) -> ValueError:
    return ValueError(
        f"nnx.save: max_file_size is {size!r}, which is no size.\n"
        "Cure: bytes, or a text like '500MB'."
    )
