"""`save`, `load`, `inspect_file`: weights in safetensors files, by dotted names.

Others read these files as they are: the tensors have the names of `nnx.state_dict`. Beside
the checksums (`file_format.py`) the metadata has, where they occur,

    refax.keys       {name: generator} of typed random keys, whose data is what is stored
    refax.aliases    {other name: name} of tied arrays, which are stored once

Saving writes to temporary files beside the target, brings them to the disk and renames them.
Several files are listed in an index as Hugging Face writes it (`model.safetensors.index.json`); the
renaming of the index is what makes a new version valid, whatever stops the program before.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from ..graph.filters import Filter
from ..objects import arguments as fit
from ..objects.arguments import Fits
from ..objects.entering import is_key
from ..objects.representation import bytes_text, shortened, wrapped
from ..objects.variable import Variable
from ..verbs.names import dotted_name
from ..verbs.pytree import Pytree
from . import file_errors as errors
from .file_format import Reader, new_file, open_file, write_file
from .orbax_folders import read_tree, trees_in
from .places import Place, Places
from .state_dict import LoadDtype, Loaded, Rename, Transform, load_into
from .tensors import as_numpy, is_tensor


def _are_texts(x: Any) -> bool:
    texts = isinstance(x, Mapping) and all(isinstance(text, str) for text in (*x, *x.values()))
    return texts and not any(name.startswith("refax.") for name in x)


_TEXTS = "texts (the format knows nothing else) by names that do not begin with 'refax.'"
Texts = Annotated[Mapping[str, str], Fits(_TEXTS, _are_texts, "json.dumps(value).")]


class FileInfo(NamedTuple):
    """What stands in a file of weights, or in the files of an index."""

    tensors: dict[str, jax.ShapeDtypeStruct]
    """Names → shape and dtype."""
    metadata: dict[str, str]
    """What was given to `nnx.save` (or by another writer)."""
    aliases: dict[str, str]
    """Other names of tied arrays → the name under which they are stored."""
    files: list[Path]
    size: int
    """Bytes of all tensors."""

    def __repr__(self) -> str:
        lines = [
            f"{len(self.tensors)} tensors, {bytes_text(self.size)}, in {len(self.files)} files"
        ]
        width = min(max(map(len, self.tensors), default=0), 50)
        for name, form in self.tensors.items():
            text = f"{form.dtype}[{','.join(map(str, form.shape))}]"
            lines.append(f"  {shortened(name, width):{width}}  {text}")
        lines += [wrapped(f"  {a} = {name}", indent="    ") for a, name in self.aliases.items()]
        lines += [wrapped(f"  {k}: {v}", indent="    ") for k, v in self.metadata.items()]
        return "\n".join(lines)


@fit.checked
def save(
    path: str | os.PathLike[str],
    obj: Any,
    *,
    filter: Filter = ...,
    metadata: Texts | None = None,
    max_file_size: int | str = "5GB",
    overwrite: bool = False,
) -> None:
    """Write the arrays of an object to a safetensors file.

    Args:
        path: the file, such as `model.safetensors`. What is larger than `max_file_size` goes into
            `model-00001-of-00003.safetensors`, … and `model.safetensors.index.json`.
        obj: a Module, an Optimizer, any object graph. Tied arrays are written once, static
            attributes are not. Also a mapping of names to arrays, as `nnx.state_dict` and
            `nnx.to_torch` give it: it is written under these names.
        filter: which arrays; everything by default.
        metadata: texts to keep in the file: `nnx.inspect_file` returns them.
        max_file_size: bytes, or a text like "500MB".
        overwrite: whether the file may exist. Until the new one is whole, the old one stays.

    Raises:
        FileExistsError: the file exists and `overwrite` is not set.
        OSError: it cannot be written (no permission, the disk is full); no file is left behind.
        ValueError: there is an array that cannot be written: an abstract or a traced one.

    Example:
        >>> import pathlib, tempfile
        >>> from refax import nnx
        >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> nnx.save(file, model, metadata={"step": "100"})
        >>> nnx.inspect_file(file)
        2 tensors, 36 B, in 1 files
          bias    float32[3]
          kernel  float32[2,3]
          step: 100
        >>> fresh = nnx.eval_shape(lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        >>> nnx.load(file, fresh)
        Loaded(missing=[], unexpected=[], cast={})
        >>> bool((fresh.kernel == model.kernel).all())
        True
    """
    path = Path(path)
    if isinstance(obj, Mapping) and not isinstance(obj, Pytree):
        obj = _of_arrays(obj)
    places = Places(obj, filter, "save")
    places.check_written()
    arrays = {name: place.value for name, place in places.by_name.items()}
    for name, array in arrays.items():
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            raise errors.not_here(name)
    texts = dict(metadata or {})
    _check_target(path, overwrite)
    keys = {name: str(jax.random.key_impl(x)) for name, x in arrays.items() if is_key(x)}
    aliases = {name: place.name for name, place in places.all_names() if name != place.name}
    arrays |= {name: jax.random.key_data(arrays[name]) for name in keys}
    own = {"refax.keys": keys, "refax.aliases": aliases}
    texts |= {name: json.dumps(entries) for name, entries in own.items() if entries}
    parts = _parts(arrays, _bytes(max_file_size))
    with _temporary(path) as temporary:
        sources = [temporary() for _ in parts]
        headers = [write_file(*part, texts) for part in zip(sources, parts, strict=True)]
        with _alone(path.parent):
            _check_target(path, overwrite)  # again: another program may have saved since
            _put_in_place(path, sources, parts, headers, temporary)


def _of_arrays(obj: Any) -> Any:
    """A mapping with NumPy arrays for another library's tensors, also where it nests."""
    if isinstance(obj, (Variable, Pytree)):
        return obj
    if isinstance(obj, Mapping):
        return {name: _of_arrays(x) for name, x in obj.items()}
    if type(obj) in (list, tuple):
        return type(obj)(map(_of_arrays, obj))
    return as_numpy(obj) if is_tensor(obj) else obj


def _put_in_place(
    path: Path,
    sources: list[Path],
    parts: list[dict[str, Any]],
    headers: list[str],
    temporary: Callable[[], Path],
) -> None:
    """Rename what was written, and delete the version before."""
    index, old = _index_of(path), _files_of_index(path)
    targets = [path] if len(parts) == 1 else _part_paths(path, len(parts))
    moves = dict(zip(sources, targets, strict=True))
    if len(parts) > 1:
        size = sum(array.nbytes for part in parts for array in part.values())
        names = [target.name for target in targets]
        own = {"total_size": size, "refax.headers": dict(zip(names, headers, strict=True))}
        weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        content = {"metadata": own, "weight_map": weight_map}
        moves[temporary()] = index  # the last
        with new_file(next(reversed(moves))) as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")
    try:
        for source, target in moves.items():
            os.replace(source, target)
    except BaseException:
        if len(parts) > 1 and next(reversed(moves)).exists():  # they belong to nothing
            for target in targets:
                target.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    for file in {path, index, *old} - {*moves.values()}:  # the version before
        file.unlink(missing_ok=True)


@fit.checked
def load(
    path: str | os.PathLike[str],
    obj: Any,
    *,
    mesh: fit.AnyMesh | None = None,
    strict: bool = True,
    rename: Rename | None = None,
    transform: Transform | None = None,
    dtype: LoadDtype = "model",
    filter: Filter = ...,
) -> Loaded:
    """Read a file that `nnx.save`, or another writer of safetensors, has written into an object.

    Each device's part is read for itself, so that no array is ever whole in memory where it is
    sharded. Every byte that is read is checked.

    Args:
        path: the file; for several files the index, or the name that was given to `nnx.save`. A
            folder of Hugging Face's stands for the `model.safetensors` or the index in it. Also a
            folder that orbax has written, such as a checkpoint of Flax.
        obj: the object; an abstract one (`nnx.eval_shape`) is filled in.
        mesh: place each array on this mesh by the annotations of its Variable. By default an array
            goes where the one is that it replaces.
        strict, rename, transform, dtype, filter: as in `nnx.load_state_dict`.

    Raises:
        WeightsFileError: (a ValueError) the file is damaged, cut short, or no safetensors file;
            with the file and the tensor. The object is as it was.
        ValueError: names or shapes do not fit.
        OSError: the file cannot be read.
    """
    path, places = Path(path).absolute(), Places(obj, filter, "load")
    mapping: dict[str, Any]
    if path.is_dir() and (trees := trees_in(path)):
        mapping = _of_folder(path, trees, {} if rename else places.by_path)
        return load_into(places, mapping, strict, rename, transform, dtype, mesh)
    with opened(path, "load") as file:
        mapping = dict(file.tensors)
        for alias, name in file.aliases.items():
            if alias not in mapping and name in mapping and places.find(alias) is not None:
                mapping[alias] = mapping[name]
        return load_into(places, mapping, strict, rename, transform, dtype, mesh)


@fit.checked
def inspect_file(path: str | os.PathLike[str]) -> FileInfo:
    """Names, shapes, dtypes and metadata of a safetensors file, without reading its tensors.

    Raises:
        WeightsFileError, OSError: as `nnx.load`.
    """
    with opened(Path(path), "inspect_file") as file:
        forms = {name: jax.ShapeDtypeStruct(t.shape, t.dtype) for name, t in file.tensors.items()}
        return file._replace(tensors=forms)


# -- reading --------------------------------------------------------------------------------------


def _of_folder(
    path: Path, trees: Mapping[str, Path], known: Mapping[tuple[str, ...], Place]
) -> dict[str, Any]:
    """The arrays of a folder that orbax has written."""
    if len(trees) > 1:
        raise errors.several_trees(path, list(trees))
    try:
        arrays = read_tree(next(iter(trees.values())), known)
    except Exception as error:  # a damaged file makes orbax raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise errors.damaged(path, reason) from error
    return {dotted_name(keys): array for keys, array in arrays.items()}


class _Lazy:
    """A tensor of a file, read when it is asked for."""

    makes_fresh = True  # arrays that nobody else has

    def __init__(self, reader: Reader, name: str, generator: str | None):
        self._reader, self._name, self._generator = reader, name, generator
        tensor = reader.tensors[name]
        self.shape, self.dtype = tensor.shape, tensor.dtype
        if generator is not None:
            self.dtype = jax.random.key(0, impl=generator).dtype
            self.shape = tensor.shape[:-1]

    def read(self, index: tuple[slice, ...] = ()) -> Any:
        data = self._reader.read(self._name, index)
        if self._generator is None:
            return data
        return jax.random.wrap_key_data(jnp.asarray(data), impl=self._generator)


@contextlib.contextmanager
def opened(path: Path, verb: str) -> Iterator[FileInfo]:
    """What stands in a file, or in the files of an index, with tensors that can be read."""
    if path.is_dir():
        inside = path / "model.safetensors"  # its name in the folders of Hugging Face's libraries
        if not (inside.exists() or _index_of(inside).exists()):
            raise errors.folder(path, verb)
        path = inside
    index = path if path.name.endswith(".json") else _index_of(path)
    is_index = path == index or (index.exists() and not path.exists())
    weight_map, headers = _index(index, verb) if is_index else ({}, {})
    with contextlib.ExitStack() as stack:
        readers: dict[str, Reader] = {}
        for name in dict.fromkeys(weight_map.values()) if is_index else [path.name]:
            file = index.with_name(name)
            if is_index and not file.exists():
                raise errors.no_part(file, index, [k for k, v in weight_map.items() if v == name])
            readers[name] = stack.enter_context(open_file(file, verb))
            if headers.get(name) not in (None, readers[name].own.get("refax.header")):
                raise errors.other_part(file, index)
        where = weight_map or {name: f for f, reader in readers.items() for name in reader.tensors}
        metadata: dict[str, str] = {}
        keys: dict[str, str] = {}
        aliases: dict[str, str] = {}
        for reader in readers.values():
            metadata |= reader.metadata
            keys |= json.loads(reader.own.get("refax.keys", "{}"))
            aliases |= json.loads(reader.own.get("refax.aliases", "{}"))
        tensors: dict[str, Any] = {}
        for name, file in where.items():
            if name not in readers[file].tensors:
                raise errors.not_in_file(index, name, file)
            tensors[name] = _Lazy(readers[file], name, keys.get(name))
        files = [reader.path for reader in readers.values()]
        size = sum(t.stop - t.start for r in readers.values() for t in r.tensors.values())
        yield FileInfo(tensors, metadata, aliases, files, size)


def _index(index: Path, verb: str) -> tuple[dict[str, str], dict[str, str]]:
    """The file of each tensor; and the checksum of the header of each file, where it is told."""
    errors.check_regular(index, verb)
    try:
        content = json.loads(index.read_text("utf-8"))
        weight_map = content["weight_map"]
        if not all(isinstance(x, str) and Path(x).name == x for x in weight_map.values()):
            raise ValueError("its entries are no names of files beside it")
        return weight_map, dict(content.get("metadata", {}).get("refax.headers", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.damaged(index, f"this is no index of safetensors files ({error})") from None


# -- writing --------------------------------------------------------------------------------------


def _index_of(path: Path) -> Path:
    return path.with_name(path.name + ".index.json")


def _files_of_index(path: Path) -> list[Path]:
    """The files of the version before, if that was several."""
    index = _index_of(path)
    if not index.exists():
        return []
    try:
        return [path.with_name(name) for name in set(_index(index, "save")[0].values())]
    except errors.WeightsFileError:
        return []


def _bytes(size: int | str) -> int:
    match = re.fullmatch(r"\s*([\d_.]+)\s*([KMGT]?)B?\s*", str(size).upper())
    number = float(match[1]) * 1000 ** " KMGT".index(match[2]) if match else 0
    if number <= 0:
        raise errors.no_size(size)
    return int(number)


def _parts(arrays: Mapping[str, Any], limit: int) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{}]
    size = 0
    for name, array in arrays.items():
        if parts[-1] and size + array.nbytes > limit:
            parts.append({})
            size = 0
        parts[-1][name] = array
        size += array.nbytes
    return parts


def _part_paths(path: Path, count: int) -> list[Path]:
    """Hugging Face's names; with something of their own where such files exist already."""

    def named(mark: str) -> list[Path]:
        numbers = [f"{i + 1:05}-of-{count:05}" for i in range(count)]
        return [path.with_name(f"{path.stem}-{mark}{n}{path.suffix}") for n in numbers]

    paths = named("")
    return named(f"{secrets.token_hex(4)}-") if any(p.exists() for p in paths) else paths


def _check_target(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise errors.folder(path, "save")
    errors.check_regular(path, "save")
    if not overwrite and (os.path.lexists(path) or os.path.lexists(_index_of(path))):
        raise errors.exists(path)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One save at a time puts its files into a folder, where the system can see to it."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # not on Windows, nor on all network disks
            import fcntl

            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Callable[[], Path]]:
    """What gives temporary files, beside the target; those that are there at the end go."""
    given: list[Path] = []

    def temporary() -> Path:
        name = f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        given.append(path.with_name(name))
        return given[-1]

    for debris in path.parent.glob(f".{glob.escape(path.name)}.*-*.tmp"):
        if not _is_running(debris.name.split(".")[-2].partition("-")[0]):  # it was killed
            debris.unlink(missing_ok=True)
    try:
        yield temporary
    finally:
        for file in given:
            file.unlink(missing_ok=True)


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OSError):
        pass
    return True


def _sync_folder(folder: Path) -> None:
    """Bring the renaming to the disk, where a folder can be opened (not on Windows)."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
