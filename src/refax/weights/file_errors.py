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


def not_concrete(name: str, value: Any, verb: str) -> ValueError:
    return GraphError(
        f"nnx.{verb}: `{name}` has no value that could be written: it is a {type(value).__name__}."
        "\nCure: save outside of transforms, and after an abstract model was filled in."
    )


def deleted(name: str, verb: str) -> ValueError:
    return GraphError(
        f"nnx.{verb}: `{name}` was deleted, or given away to a function (donated).\n"
        "Cure: use what that function returned; `nnx.clone(model)` before it keeps the old values."
    )


def too_wide(name: str, dtype: Any, verb: str) -> ValueError:
    return GraphError(
        f"nnx.{verb}: `{name}` is of {dtype}, which neither JAX nor a file of weights has.\n"
        "Cure: array.astype(np.float64)."
    )


def same_name(verb: str, name: str) -> ValueError:
    return GraphError(
        f"nnx.{verb}: two arrays have the name `{name}`, as two keys of a dict read alike.\n"
        f"Cure: other keys, such as the number 0 or the text '0', but not both."
    )


def too_large(what: str, given: Any, dtype: Any) -> ValueError:
    return GraphError(
        f"{what} has numbers of {given} that {dtype} cannot hold; nothing was changed.\n"
        "Cure: transform=… to convert the values on purpose, or dtype='file' to keep theirs."
    )


def no_name(name: str) -> ValueError:
    return GraphError(
        f"nnx.save: no file can have a tensor or metadata named {name[:80]!r}, or such a text.\n"
        "Cure: another key: one that is Unicode, and not '__metadata__'."
    )


def large_header(size: int, most: int) -> ValueError:
    return GraphError(
        f"nnx.save: names, shapes and metadata take {size:,} bytes, of which the format allows "
        f"{most:,}.\nCure: max_file_size=…, for several files; shorter names."
    )


def check_regular(path: Path, verb: str) -> None:
    """Raise for what is there and is no file: to open a pipe might wait for ever."""
    if path.exists() and not path.is_file():
        raise OSError(
            f"nnx.{verb}: {path} is no file, but a folder, a pipe, a socket or a device.\n"
            "Cure: give the path of a file."
        )


def no_part(file: Path, index: Path, names: list[str]) -> FileNotFoundError:
    more = f" and {len(names) - 1:,} more tensors" if len(names) > 1 else ""
    return FileNotFoundError(
        f"{file}: there is no such file, in which `{names[0]}`{more} should stand, as {index.name} "
        f"has it.\n{_RESTORE}"
    )


def other_part(file: Path, index: Path) -> WeightsFileError:
    return damaged(file, f"this is not the file that was saved with {index.name}, but another one")


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
