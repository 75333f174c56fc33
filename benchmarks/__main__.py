"""`python -m benchmarks`: measure and print the table."""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from . import (
    forms,
    rows_calls,
    rows_devices,
    rows_eager,
    rows_files,
    rows_objects,
    rows_programs,
    rows_transforms,
)
from .harness import CLOCKS, Result, Row, cells, measure, table

_GROUPS = (rows_calls, rows_programs, rows_objects, rows_eager, rows_transforms, rows_files)
_BEGIN, _END = "<!-- {}: written by --markdown -->", "<!-- end of {} -->"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no slow rows, fewer rounds")
    parser.add_argument(
        "--rows",
        metavar="PATTERN",
        action="append",
        help="only rows with PATTERN in their name, or that match it (* and ?); may be repeated",
    )
    parser.add_argument("--seconds", type=float, help="how long to measure each row")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: see README.md")
    parser.add_argument("--forms", action="store_true", help="the forms of layers (forms.py)")
    parser.add_argument("--devices", action="store_true", help="the rows of 8 made-up devices")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument(
        "--markdown",
        metavar="FILE",
        type=Path,
        help="also write the table to FILE, between its table marks if it has them",
    )
    return parser.parse_args(arguments)


def _chosen(rows: Sequence[Row], patterns: Sequence[str] | None, quick: bool) -> list[Row]:
    def wanted(row: Row) -> bool:
        if patterns is None:
            return not (quick and row.slow)
        return any(
            fnmatch.fnmatchcase(row.name, p) if set("*?") & set(p) else p in row.name
            for p in patterns
        )

    return [row for row in rows if wanted(row)]


def _machine(clock: str) -> str:
    """When, on what and with which versions the table was measured."""
    versions = [f"Python {platform.python_version()}"]
    for name in ("jax", "optax", "flax", "equinox"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    device = jax.devices()[0]
    kind = "CPU" if device.platform == "cpu" else device.device_kind
    return (
        f"{datetime.date.today()}, {len(os.sched_getaffinity(0))} cores, {kind}, {clock} time; "
        + ", ".join(versions)
    )


def _write(path: Path, what: str, text: str) -> None:
    opening, closing = _BEGIN.format(what), _END.format(what)
    block = f"{opening}\n{text}\n{closing}"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    head, begin, rest = before.partition(opening)
    _, end, tail = rest.partition(closing)
    path.write_text(head + block + tail if begin and end else block + "\n", encoding="utf-8")


def _show(options: argparse.Namespace, what: str, lines: str) -> None:
    text = f"{_machine(options.clock)}\n\n{lines}"
    print(f"\n{text}")
    if options.markdown:
        _write(options.markdown, what, text)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if options.clock == "cpu":  # before JAX counts the cores that it may use
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if options.forms:
        _show(options, "forms", forms.table(options.rows, options.quick))
        return 0
    if options.devices and jax.device_count() < rows_devices.COUNT:  # begin again, with as many
        flag = f"--xla_force_host_platform_device_count={rows_devices.COUNT}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
        given = sys.argv[1:] if arguments is None else arguments
        command = [sys.executable, "-m", "benchmarks", *given]
        return subprocess.run(command, env=environment, check=False).returncode
    groups = (rows_devices,) if options.devices else _GROUPS
    rows = _chosen([r for g in groups for r in g.rows()], options.rows, options.quick)
    if options.list:
        print("\n".join(row.name + ("  (slow)" if row.slow else "") for row in rows))
        return 0
    if not rows:
        print(f"no row matches {options.rows}; --list shows their names", file=sys.stderr)
        return 2
    seconds = options.seconds or (0.7 if options.quick else 4.0)
    results: list[Result] = []
    for row in rows:
        result = measure(row, seconds, options.clock)
        results.append(result)
        print("  ".join(filter(None, cells(result))), file=sys.stderr, flush=True)
        for side, error in result.errors.items():
            print(f"    {side}: {error}", file=sys.stderr, flush=True)
    _show(options, "devices" if options.devices else "table", table(results))
    return 1 if any(result.verdict == "ERROR" for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
