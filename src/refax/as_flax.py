"""`flax.nnx` is refax, for a program and for the libraries that it uses; not a line is changed.

    python -m refax.as_flax program.py --its options
    python -m refax.as_flax -m package.module --its options
    pytest -p refax.as_flax
    import refax.as_flax                # as the first line of a program

From then on `flax.nnx` and every address below it (`flax.nnx.nn.linear`, …) are those of `refax.nnx`.
The rest of an installed Flax stays what it is, apart from `flax.errors.TraceContextError`, which is
refax's, so that `except` finds it. Without Flax installed, `flax` has `nnx` and nothing else.

How: the modules of `refax.nnx` are entered in `sys.modules` under their names in Flax, and a finder
waits for `flax` itself, whose attribute `nnx` is set as soon as it is loaded.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import pkgutil
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from refax import nnx

USAGE = """\
usage: python -m refax.as_flax program.py [argument …]
       python -m refax.as_flax -m module [argument …]"""


class _Finder:
    """Waits for `flax` and `flax.errors`; says what there is of `flax.nnx`."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.startswith("flax.nnx."):
            raise _no_address(name)
        if name in _ADDED:
            spec = importlib.machinery.PathFinder.find_spec(name, path, target)
            if spec is None or spec.loader is None:
                return importlib.machinery.ModuleSpec(name, _Alone()) if name == "flax" else None
            return _and_then(spec, _ADDED[name])
        if name.startswith("flax.") and isinstance(sys.modules["flax"], _FlaxAlone):
            raise _not_installed(name)
        return None


def _add_nnx(flax: Any) -> None:
    flax.nnx = nnx


def _add_error(errors: Any) -> None:
    errors.TraceContextError = nnx.TraceContextError


_ADDED: dict[str, Callable[[Any], None]] = {"flax": _add_nnx, "flax.errors": _add_error}


def _and_then(
    spec: importlib.machinery.ModuleSpec, add: Callable[[Any], None]
) -> importlib.machinery.ModuleSpec:
    """The spec of a module to which something is added after it was run."""
    loader: Any = spec.loader
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        run(module)
        add(module)

    loader.exec_module = exec_module
    return spec


class _FlaxAlone(ModuleType):
    """`flax` where Flax is not installed."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(str(_not_installed(f"flax.{name}")))


class _Alone:
    @staticmethod
    def create_module(spec: importlib.machinery.ModuleSpec) -> ModuleType:
        flax = _FlaxAlone("flax", "Flax is not installed; `flax.nnx` is refax's.")
        flax.__path__ = []
        return flax

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        _add_nnx(module)


def _not_installed(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{name}: Flax is not installed, and refax.as_flax brings flax.nnx alone.\n"
        "Cure: pip install flax; flax.nnx stays refax's.",
        name=name,
    )


def _no_address(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{name}: refax has no such address below nnx.\n"
        "Cure: take the name from flax.nnx itself, where every public name is.",
        name=name,
    )


def install() -> None:
    """Make `flax.nnx` mean refax, from now on.

    Raises:
        ImportError: something has imported Flax's own `flax.nnx` already.
    """
    if sys.modules.get("flax.nnx", nnx) is not nnx:
        raise ImportError(
            "refax.as_flax comes too late: flax.nnx has been imported from Flax already, and objects "
            "of both would meet.\n"
            "Cure: `import refax.as_flax` as the first line of the program, before anything that "
            "imports flax; or start it by `python -m refax.as_flax program.py`, which needs no "
            "change (for tests: `pytest -p refax.as_flax`)."
        )
    if any(isinstance(finder, type) and finder.__name__ == "_Finder" for finder in sys.meta_path):
        return
    for name in _addresses():
        sys.modules["flax" + name.removeprefix("refax")] = importlib.import_module(name)
    sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]
    for name, add in _ADDED.items():
        if name in sys.modules:
            add(sys.modules[name])


def _addresses() -> list[str]:
    below = pkgutil.walk_packages(nnx.__path__, "refax.nnx.")
    return ["refax.nnx", *(module.name for module in below)]


def main(arguments: list[str]) -> None:
    """Run a program or a module with the arguments that follow it."""
    match arguments:
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [program, *rest] if not program.startswith("-"):
            sys.argv = [program, *rest]
            sys.path[0] = str(Path(program).resolve().parent)
            runpy.run_path(program, run_name="__main__")
        case _:
            raise SystemExit(USAGE)


install()

if __name__ == "__main__":
    main(sys.argv[1:])
