"""`tabulate`: a model as a table, a row for each method of a Module that a call of it calls."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from ..graph.filters import Filter, to_predicate
from ..objects.arguments import Count, checked
from ..objects.errors import suggest
from ..objects.placing import place_text
from ..objects.representation import Text, bytes_text, count, shortened
from ..objects.variable import Variable, raw
from ..objects.variable_types import RngState
from ..objects.watch import is_array
from ..verbs.iteration import iter_children_of, iter_graph
from ..verbs.module import Module
from .calls import Call, describe, trace_calls
from .flops import FlopCounter

_CALL_COLUMNS = ("path", "type", "inputs", "outputs", "flops", "vjp_flops", "bytes", "sharding")


@dataclass
class Row:
    """A row of the table: one call of a method of one Module.

    `own` has, by the name of a Variable type, a line for each Variable of the Module itself;
    `totals` (elements, bytes) of all Variables at and below its path, each counted at one path.
    """

    path: tuple[Any, ...]
    type: str
    method: str
    inputs: str
    outputs: str
    flops: int | None = None
    vjp_flops: int | None = None
    bytes: int | None = None
    own: dict[str, list[str]] = field(default_factory=dict)
    totals: dict[str, tuple[int, int]] = field(default_factory=dict)
    sharding: str = ""
    depth: int = 0
    repeats: int = 1


_MANY_ROWS = 100


def filter_rng_streams(row: Row) -> bool:
    """A `row_filter`: all rows but those of random streams, which have none here as it is."""
    return row.type not in ("Rngs", "RngStream")


@checked
def tabulate(
    obj: Module,
    *input_args: Any,
    depth: Count | None = None,
    method: str = "__call__",
    row_filter: Callable[[Row], bool] | None = None,
    columns: Sequence[str] | None = None,
    variable_types: Filter = ...,
    collapse: bool | None = None,
    table_kwargs: Mapping[str, Any] | None = None,
    column_kwargs: Mapping[str, Any] | None = None,
    console_kwargs: Mapping[str, Any] | None = None,
    compute_flops: bool = False,
    compute_vjp_flops: bool = False,
    **input_kwargs: Any,
) -> str:
    """A table of the Modules that `obj(*input_args, **input_kwargs)` calls, in the order of calls.

    It comes from one abstract trace: nothing is computed and `obj` stays as it is. A row has the
    Module's path, and the name of the method unless it is `__call__`; its type, the dtypes and
    shapes of its inputs and outputs, its own Variables by type, and the size of all at and below
    its path. A Variable that is reached in several ways is counted at its first path and marked as
    shared elsewhere. In a scan or vmap, inputs and outputs are those of one step; Variables are
    shown as they are held, stacked.

    Args:
        obj: the model; its arrays may be `jax.ShapeDtypeStruct`s.
        *input_args: arrays, `jax.ShapeDtypeStruct`s, objects such as `nnx.Rngs`, or anything else
            that the method takes.
        depth: how many Modules down to show; all by default.
        method: the name of the method that is called.
        row_filter: which rows to show, as a function of a row with the attributes `path`, `type`,
            `inputs`, `outputs`, `flops`, `vjp_flops`, `own` and `totals`.
        columns: which columns to show, of path, type, inputs, outputs, flops, vjp_flops, bytes,
            sharding and the names of Variable types; by default all but bytes (which each call
            reads and writes, by XLA's analysis), and sharding if there are several devices.
        variable_types: a filter; what it leaves out is neither shown nor counted.
        collapse: show rows that differ only in an index of their paths as one; by default where
            there are more than 100 rows.
        table_kwargs, column_kwargs, console_kwargs: for `rich.table.Table`, its `add_column` and
            `rich.console.Console`. For colours: `console_kwargs={"force_terminal": True}`.
        compute_flops: count the floating-point operations of each call, by XLA's analysis, which
            counts the body of a loop once. Where it tells nothing, the table shows "-".
        compute_vjp_flops: the same with the backward pass added, with respect to the Params and
            the floating-point inputs.
        **input_kwargs: keyword arguments of the method.

    Raises:
        TypeError: `obj` is no Module, or has no such method.
        ValueError: a column that does not exist.

    Example:
        >>> from refax import nnx
        >>> import jax.numpy as jnp
        >>> model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        >>> table = nnx.tabulate(model, jnp.ones((2, 3)), columns=("type", "outputs", "Param"))
        >>> "kernel: float32[3,4]" in table, "16 (64 B)" in table
        (True, True)
    """
    if not isinstance(obj, Module) or not callable(getattr(obj, method, None)):
        raise TypeError(
            f"nnx.tabulate: {type(obj).__name__} has no method `{method}`.\n"
            "Cure: give a Module, and with method=... the name of one of its methods."
        )
    with_bytes = "bytes" in (columns or ())
    with_flops = compute_flops or compute_vjp_flops or with_bytes
    calls = trace_calls(obj, method, input_args, input_kwargs, keep_modules=with_flops)
    variables = _VariablesByModule(obj, calls, to_predicate(variable_types))
    counter = FlopCounter()
    rows = []
    for call in calls:
        row = variables.row(call)
        if compute_flops:
            row.flops = counter.count(call, vjp=False)
        if with_bytes:
            row.bytes = counter.count(call, vjp=False, of="bytes accessed")
        if compute_vjp_flops:
            row.vjp_flops = counter.count(call, vjp=True)
        if (depth is None or row.depth <= depth) and (row_filter is None or row_filter(row)):
            rows.append(row)
    if len(rows) > _MANY_ROWS if collapse is None else collapse:
        rows = _collapse(rows)
    totals = variables.sizes.get((), {})
    spread = variables.spread or "sharding" in (columns or ())
    wanted = {"flops": compute_flops, "vjp_flops": compute_vjp_flops, "sharding": spread}
    wanted["bytes"] = columns is not None  # (an unknown name lists it)
    known = [c for c in (*_CALL_COLUMNS, *sorted(totals)) if wanted.get(c, True)]
    for name in columns or ():
        if name not in known:
            raise ValueError(
                f"nnx.tabulate: columns: there is no {name!r}.{suggest(name, known)}\n"
                f"Cure: choose from {', '.join(known)}."
            )
    shown = list(columns) if columns is not None else known
    title = f"{type(obj).__name__} Summary"
    options = [dict(given or {}) for given in (table_kwargs, column_kwargs, console_kwargs)]
    return _render(rows, shown, totals, title, *options)


class _VariablesByModule:
    """Whose each Variable is: of the nearest Module above it that was called."""

    def __init__(self, model: Module, calls: Iterable[Call], matches: Callable[..., bool]):
        visited = list(iter_graph(model))
        self.modules = {path for path, node in visited if isinstance(node, Module)}
        first = {id(v): path for path, v in visited if isinstance(v, Variable)}
        self.own: dict[tuple, dict[str, list[str]]] = {}
        self.sizes: dict[tuple, dict[str, tuple[int, int]]] = {}
        self.places: dict[tuple, list[str]] = {}
        self.spread = False  # whether there is something on several devices
        for path, node in visited:
            for key, child in iter_children_of(node):
                place, is_leaf = (*path, key), isinstance(child, Variable) or is_array(child)
                if not is_leaf or not matches(place, child):
                    continue
                home = first.get(id(child), place)
                kind = _column_of(child)
                module = self._module_above(place)
                line = f"{_name(place[len(module) :])}: {describe(child)}"
                if home != place:
                    line += f" (shared with {_name(home)})"
                else:
                    self._count(place, kind, child)
                self.own.setdefault(module, {}).setdefault(kind, []).append(line)
                for array in filter(is_array, jax.tree.leaves(raw(child))):
                    sharding: Any = getattr(array, "sharding", None)
                    self.spread |= sharding is not None and len(sharding.device_set) > 1
                    where = f"{_name(place[len(module) :])}: {place_text(sharding)}"
                    self.places.setdefault(module, []).append(where)

    def _module_above(self, path: tuple) -> tuple:
        while path not in self.modules:
            path = path[:-1]
        return path

    def _count(self, place: tuple, kind: str, value: Any) -> None:
        elements, size = count([raw(value)])
        for length in range(len(place)):
            totals = self.sizes.setdefault(place[:length], {})
            before = totals.get(kind, (0, 0))
            totals[kind] = before[0] + elements, before[1] + size

    def row(self, call: Call) -> Row:
        inputs = [describe(x) for x in call.args]
        inputs += [f"{k}: {describe(x)}" for k, x in call.kwargs.items() if x is not None]
        row = Row(call.path, call.type, call.method, "\n".join(inputs), describe(call.outputs))
        row.sharding = "\n".join(self.places.get(row.path, ()))
        row.own, row.totals = self.own.get(row.path, {}), self.sizes.get(row.path, {})
        row.depth = sum(row.path[:length] in self.modules for length in range(len(row.path)))
        return row


def _column_of(leaf: Any) -> str:
    if isinstance(leaf, RngState):  # keys and counts: one column
        return "RngState"
    return type(leaf).__name__ if isinstance(leaf, Variable) else "Array"


def _collapse(rows: list[Row]) -> list[Row]:
    """Rows that differ in indices only as one, with the range of each index that varies."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        pattern = tuple("#" if isinstance(key, int) else key for key in row.path)
        own = tuple((kind, *lines) for kind, lines in row.own.items())
        looks = (row.type, row.method, row.inputs, row.outputs, row.flops, row.vjp_flops, own,
                 row.bytes, row.sharding)  # fmt: skip
        groups.setdefault((pattern, looks, tuple(row.totals.items())), []).append(row)
    for first, *others in groups.values():
        first.repeats += len(others)
        first.path = tuple(
            keys[0] if len(set(keys)) == 1 else f"{min(keys)}…{max(keys)}"
            for keys in zip(first.path, *(row.path for row in others), strict=True)
        )
    return [first for first, *_ in groups.values()]


def _name(path: tuple) -> str:
    return "/".join(map(str, path))


def _size(total: tuple[int, int]) -> str:
    return f"{total[0]:,} ({bytes_text(total[1])})"


def _cell(row: Row, column: str) -> str:
    if column == "path":
        return _name(row.path if row.method == "__call__" else (*row.path, row.method))
    if column == "type":
        return row.type if row.repeats == 1 else f"{row.type} ×{row.repeats}"
    if column in ("inputs", "outputs", "sharding"):
        return getattr(row, column)
    if column in ("flops", "vjp_flops", "bytes"):
        number = getattr(row, column)
        return "-" if number is None else f"{number:,}"
    # Keys and counts of random streams look alike everywhere: their size says enough.
    own = "\n".join(row.own.get(column, ())) if column != "RngState" else ""
    total = _size(row.totals[column]) if column in row.totals else ""
    return "\n\n".join(filter(None, (own, total)))


def _render(rows: list[Row], columns: list[str], totals: dict, title: str, *options: dict) -> str:
    """The text of the table; `options` are for the table, its columns, and the console."""
    of_table, of_column, of_console = options
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text as Cell
    except ImportError:
        raise ImportError("nnx.tabulate needs rich.\nCure: pip install rich.") from None

    everything = sum(n for n, _ in totals.values()), sum(size for _, size in totals.values())
    texts = {"title": title, "caption": f"Total: {_size(everything)}"}
    footers = {column: _size(totals[column]) for column in columns if column in totals}
    labelled = next((c for c in reversed(columns) if c not in footers), None)

    def drawn(width: int, of_path: int, look: dict[str, Any]) -> Text:
        table = Table(**{"show_footer": True, "show_lines": True, **texts, **look, **of_table})
        for column in columns:
            footer = "Total" if column == labelled else footers.get(column, "")
            fold = {"no_wrap": not look, "overflow": "fold" if look else "ellipsis"}
            table.add_column(column, **{"footer": footer, **fold, **of_column})
        for row in rows:
            cells = {column: _cell(row, column) for column in columns}
            cells["path"] = shortened(cells.get("path", ""), of_path)
            table.add_row(*(Cell(cells[column]) for column in columns))
        text = io.StringIO()
        options = {"file": text, "width": width, "force_terminal": False, **of_console}
        Console(**options).print(table)
        return Text("\n".join(line.rstrip() for line in text.getvalue().split("\n")))

    # As wide as the table needs, except for a terminal: there, cells are broken in lines.
    whole, width = drawn(400, 400, {}), shutil.get_terminal_size((400, 0)).columns
    if "width" in of_console or max(map(len, whole.split("\n"))) <= width:
        return whole
    return drawn(width, width // 2, {"padding": (0, 0)})
