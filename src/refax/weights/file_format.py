"""One safetensors file: written in one pass with checksums, read in slices.

The format is safetensors' own, so everybody reads what stands here: eight bytes with the size of
the header, the header (JSON: dtype, shape and place of each tensor), the bytes of the tensors. What
refax adds stands in the header's `__metadata__`, which other readers pass over:

    refax.format      the version of what refax adds
    refax.checksums   {name: checksums of each 16 MiB of the tensor, eight hexadecimal digits each}
    refax.dtypes      {name: dtype} of tensors whose dtype the format does not know; their bits are
                      kept as integers
    refax.header      the CRC-32 of the header itself, with these eight digits as zeros

A checksum is a CRC-32, but not of every byte, which would take a third of the time of writing. Each
MiB is laid out as rows of 511 words of 64 bits, little-endian; into the CRC go the sums of their
columns, the sums of the rows, and what is left of the last row. A word that changed shows in two
sums, a sector that was lost or changed places (4 KiB, a row is shorter) in as many as it has words.
In version 1 it was the CRC-32 of all bytes.

A tensor on a CPU is never in memory a second time; from other devices, or from several, one at a
time is brought to the host. It is written piece by piece, with zeros for the checksums, which are
put in at the end. A reader reads only what it is asked for, and checks it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import file_errors as errors

VERSION = 2
PIECE = 1 << 24  # bytes under one checksum
_BLOCK, _COLUMNS = 1 << 20, 511
_MAX_HEADER = 100_000_000  # as safetensors has it
_ZEROS = "0" * 8
_MARK = '"refax.header":"'

# The dtypes of the format that have the same name for NumPy (with ml_dtypes, which JAX brings).
_DTYPES = {"BOOL": "bool", "BF16": "bfloat16", "C64": "complex64"}
_DTYPES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}
_DTYPES |= {"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"}
for _letter, _kind in (("U", "uint"), ("I", "int"), ("F", "float")):
    _DTYPES |= {f"{_letter}{bits}": f"{_kind}{bits}" for bits in (8, 16, 32, 64)}
_CODES = {name: code for code, name in _DTYPES.items()}
_BITS = {1: "U8", 2: "U16", 4: "U32", 8: "U64"}


class Tensor(NamedTuple):
    """A tensor in a file: what it is and where it stands."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def _as_stored(dtype: np.dtype) -> tuple[str, tuple[int, ...]]:
    """The format's dtype for a NumPy one, and the axes that are added for it."""
    if dtype.name in _CODES:
        return _CODES[dtype.name], ()
    if dtype.name == "complex128":  # in either order of bytes
        return "F64", (2,)
    return _BITS[dtype.itemsize], ()


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which must not exist; it is on the disk at the end of the `with` block."""
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_file(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """Write arrays to a new file, and to the disk; return the checksum of its header.

    Args:
        path: of the file, which must not exist.
        tensors: names → arrays of JAX or NumPy, one at a time brought to the host.
        metadata: further entries of `__metadata__`.
    """
    for text in (*tensors, *metadata, *metadata.values()):
        own = text == "__metadata__" and text in tensors
        if own or text.encode(errors="ignore").decode() != text:
            raise errors.no_name(text)  # half of a surrogate pair; the format's own
    header: dict[str, Any] = {}
    checksums, dtypes, at = {}, {}, 0
    for name, array in tensors.items():
        dtype = np.dtype(array.dtype)
        size = math.prod(array.shape) * dtype.itemsize
        code, more = _as_stored(dtype)
        if code not in _DTYPES or _DTYPES[code] != dtype.name:
            dtypes[name] = dtype.name
        shape = [*array.shape, *more]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [at, at + size]}
        checksums[name] = _ZEROS * -(-size // PIECE)
        at += size

    def head() -> bytes:
        own = {"refax.format": str(VERSION), "refax.header": _ZEROS}
        own |= {"refax.checksums": json.dumps(checksums, separators=(",", ":"))}
        own |= {"refax.dtypes": json.dumps(dtypes)} if dtypes else {}
        whole = {"__metadata__": {**metadata, **own}, **header}
        text = json.dumps(whole, separators=(",", ":"), ensure_ascii=True).encode()
        return text + b" " * (-len(text) % 8)  # the data begins at a multiple of eight

    with new_file(path) as file:
        text = head()
        if len(text) > _MAX_HEADER:
            raise errors.large_header(len(text), _MAX_HEADER)
        file.write(len(text).to_bytes(8, "little") + text)
        for name, array in tensors.items():
            checksums[name] = _write(file, array)
        text = head()
        digits = f"{zlib.crc32(text):08x}"
        file.seek(8)
        file.write(text.replace(f"{_MARK}{_ZEROS}".encode(), f"{_MARK}{digits}".encode()))
    return digits


def _write(file: BinaryIO, array: Any) -> str:
    """Write the bytes of an array, and give their checksums."""
    if isinstance(array, jax.Array):  # it would keep a copy that is made for it: let another one
        parts = [shard.data for shard in array.addressable_shards]
        array = jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)
    order = np.dtype(array.dtype).newbyteorder("<")
    data = np.ascontiguousarray(array, order).reshape(-1).view(np.uint8).data
    numbers: list[int] = []
    for start in range(0, len(data), PIECE):
        numbers.append(0)
        for block in _blocks(data[start : start + PIECE]):
            numbers[-1] = _sums(numbers[-1], block)
            file.write(block)  # which is in the processor's cache now
    return "".join(f"{number:08x}" for number in numbers)


def _blocks(piece: memoryview) -> Iterator[memoryview]:
    return (piece[start : start + _BLOCK] for start in range(0, len(piece), _BLOCK))


def _sums(number: int, block: memoryview) -> int:
    """The checksum of what comes before (`number`) and of a block."""
    rows = len(block) // (8 * _COLUMNS)
    words = np.frombuffer(block, "<u8", rows * _COLUMNS).reshape(rows, _COLUMNS)
    for part in (words.sum(axis=0), words.sum(axis=1), block[words.nbytes :]):
        number = zlib.crc32(part, number)
    return number


_CHECKSUMS: dict[int, Callable[[memoryview], str]] = {  # of a piece, by version
    1: lambda piece: f"{zlib.crc32(piece):08x}",
    2: lambda piece: f"{reduce(_sums, _blocks(piece), 0):08x}",
}


class Reader:
    """A safetensors file, open for reading: its tensors by name, its metadata.

    Raises:
        WeightsFileError: it is no such file, it is damaged or cut short, or it is newer.
    """

    def __init__(self, path: Path, file: BinaryIO):
        from safetensors import SafetensorError, safe_open

        self.path = path
        self._file = file
        end = os.fstat(file.fileno()).st_size
        size = int.from_bytes(file.read(8), "little")
        if (start := file.read(1)) != b"{":
            raise errors.foreign(path, "it does not begin with a header")
        if not 2 <= size <= min(_MAX_HEADER, end - 8):
            raise errors.damaged(path, f"the header is cut short at {end:,} bytes")
        text = start + file.read(size - 1)
        try:
            with safe_open(path, framework="np"):
                pass  # checks dtypes, shapes and places against each other and the file's size
            header = json.loads(text)
        except (SafetensorError, ValueError) as error:
            raise errors.damaged(path, str(error)) from None
        own = header.pop("__metadata__", None) or {}
        self.metadata: dict[str, str] = {k: v for k, v in own.items() if k[:6] != "refax."}
        self.own: dict[str, str] = {k: v for k, v in own.items() if k[:6] == "refax."}
        self._check_header(text, own)
        dtypes = json.loads(own.get("refax.dtypes", "{}"))
        self._checksums: dict[str, str] = json.loads(own.get("refax.checksums", "{}"))
        self._data = 8 + size
        self.tensors: dict[str, Tensor] = {}
        for name, entry in header.items():
            code, shape = entry["dtype"], tuple(entry["shape"])
            if name not in dtypes and code not in _DTYPES:
                raise errors.damaged_tensor(self.path, name, f"has the dtype {code}, unknown here")
            dtype = jnp.dtype(dtypes.get(name) or _DTYPES[code])
            if dtype == np.complex128:
                shape = shape[:-1]
            self.tensors[name] = Tensor(dtype, shape, *entry["data_offsets"])

    def _check_header(self, text: bytes, own: Mapping[str, str]) -> None:
        version = own.get("refax.format")
        if version is None:
            if any(key in text for key in (b'"refax.', b'".header"', b'"refax')):
                raise errors.damaged(self.path, "the header is not as it was written")
            return  # another writer's: without checksums
        digits = own.get("refax.header", "")
        mark = _MARK.encode()
        plain = text.replace(mark + digits.encode(), mark + _ZEROS.encode())
        if f"{zlib.crc32(plain):08x}" != digits:
            raise errors.damaged(self.path, "the header is not as it was written")
        if int(version) not in _CHECKSUMS:
            raise errors.newer(self.path, version, VERSION)
        self._checksum = _CHECKSUMS[int(version)]

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A tensor, or a slice of it: only the pieces of the file that it touches are read.

        Args:
            name: of the tensor.
            index: a slice with step 1 for each of its first axes, as a device's part has.

        Raises:
            WeightsFileError: what is read is not what was written.
        """
        tensor = self.tensors[name]
        bounds = [s.indices(n)[:2] for s, n in zip(index, tensor.shape)]
        bounds += [(0, n) for n in tensor.shape[len(bounds) :]]
        out = _aligned(tuple(max(0, b - a) for a, b in bounds), tensor.dtype)
        flat = out.reshape(-1).view(np.uint8)
        at, held, piece = 0, -1, np.empty(0, np.uint8)
        for start, stop in _runs(tensor, bounds) if out.size else ():
            while start < stop:
                number, inside = divmod(start, PIECE)
                whole = min(PIECE, tensor.stop - tensor.start - number * PIECE)
                size = min(stop - start, whole - inside)
                if size == whole:  # straight to where it belongs
                    self._read_piece(name, tensor, number, flat[at : at + size])
                else:
                    if number != held:  # neighbouring runs often stand in one
                        held, piece = number, np.empty(whole, np.uint8)
                        self._read_piece(name, tensor, number, piece)
                    flat[at : at + size] = piece[inside : inside + size]
                start, at = start + size, at + size
        return out

    def _read_piece(self, name: str, tensor: Tensor, number: int, into: np.ndarray) -> None:
        """Read piece `number` of a tensor, and check it."""
        start = tensor.start + number * PIECE
        if os.preadv(self._file.fileno(), [into.data], self._data + start) != into.size:
            raise errors.damaged_tensor(self.path, name, "is cut short")
        expected = self._checksums.get(name)
        if expected is not None and self._checksum(into.data) != expected[8 * number :][:8]:
            where = f"bytes {start:,} to {start + into.size:,}"
            raise errors.damaged_tensor(self.path, name, f"is not as it was written: {where}")


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that begins at a multiple of 64 bytes: on a CPU, JAX takes it as it is."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)


def _runs(tensor: Tensor, bounds: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The byte ranges, within a tensor, of a box of it."""
    axes, shape = len(bounds), tensor.shape
    while axes and bounds[axes - 1] == (0, shape[axes - 1]):
        axes -= 1  # whole in the last axes: they are one run
    inner = math.prod(shape[axes:]) * tensor.dtype.itemsize
    if not axes:
        yield 0, inner
        return
    first, last = bounds[axes - 1]
    for outer in itertools.product(*itertools.starmap(range, bounds[: axes - 1])):
        row = 0
        for i, n in zip(outer, shape[: axes - 1], strict=True):
            row = row * n + i
        base = row * shape[axes - 1]
        yield (base + first) * inner, (base + last) * inner


@contextlib.contextmanager
def open_file(path: Path, verb: str = "load") -> Iterator[Reader]:
    errors.check_regular(path, verb)
    with open(path, "rb", buffering=0) as file:
        yield Reader(path, file)
