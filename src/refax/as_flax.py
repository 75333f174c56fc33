"""`flax.nnx` is refax, for a program and for the libraries that it uses; not a line is changed.

    python -m refax.as_flax program.py --its options
    python -m refax.as_flax -m package.module --its options
    pytest -p refax.as_flax
    import refax.as_flax                # as the first line of a program

From then on `flax.nnx` and every address below it (`flax.nnx.nn.linear`, …) are those of
`refax.nnx`. The rest of an installed Flax stays what it is, apart from
`flax.errors.TraceContextError`, which is refax's, so that `except` finds it. Without Flax
installed, `flax` has `nnx` and nothing else.

How: the modules of `refax.nnx` are entered in `sys.modules` under their names in Flax, and a finder
waits for `flax` itself, whose attribute `nnx` is set as soon as it is loaded. Processes that the
program starts by `multiprocessing` do the same before they load the program; a Python that it
starts by a command line of its own does not.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import multiprocessing.spawn
import os
import pkgutil
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any, NoReturn

from refax import nnx

USAGE = """\
usage: python -m refax.as_flax program.py [argument …]
       python -m refax.as_flax -m module [argument …]

Run a program, or a module as a program, in which flax.nnx is refax.nnx."""


class _Finder:
    """Waits for `flax` and `flax.errors`; says what there is of `flax.nnx`."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.startswith("flax.nnx."):
            raise _no_address(name)
        if name.startswith("flax.") and isinstance(sys.modules.get("flax"), _FlaxAlone):
            raise _not_installed(name)
        if name not in _ADDED:
            return None
        others = [finder for finder in sys.meta_path if finder is not _Finder]
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None and spec.loader is not None), None)
        if spec is None:
            return ModuleSpec(name, _Alone()) if name == "flax" else None
        _and_then_add(spec.loader)
        return spec


_ADDED = {"flax": ("nnx", nnx), "flax.errors": ("TraceContextError", nnx.TraceContextError)}


def _and_then_add(loader: Any) -> None:
    """Have a module get what is added to it after it was run."""
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        run(module)
        setattr(module, *_ADDED[module.__name__])

    loader.exec_module = exec_module


class _FlaxAlone(ModuleType):
    """`flax` where Flax is not installed."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(str(_not_installed(f"flax.{name}")))


class _Alone(importlib.abc.Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        flax = _FlaxAlone("flax", "Flax is not installed; `flax.nnx` is refax's.")
        flax.__path__ = []
        return flax

    def exec_module(self, module: ModuleType) -> None:
        setattr(module, *_ADDED["flax"])


def _not_installed(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"{name}: Flax is not installed, and refax.as_flax brings flax.nnx alone.\n"
        "Cure: pip install flax; flax.nnx stays refax's.",
        name="flax",
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
            "refax.as_flax comes too late: flax.nnx has been imported from Flax already, and "
            "objects of both would meet.\n"
            "Cure: `import refax.as_flax` as the first line of the program, before anything that "
            "imports flax (in a notebook: in the first cell, after a restart); or start it by "
            "`python -m refax.as_flax program.py`, which needs no change (for tests: `pytest -p "
            "refax.as_flax`)."
        )
    if any(getattr(finder, "__name__", "") == "_Finder" for finder in sys.meta_path):
        return  # by the same file under its other name, `__main__` or `refax.as_flax`
    below = pkgutil.walk_packages(nnx.__path__, "refax.nnx.")
    for name in ("refax.nnx", *(module.name for module in below)):
        sys.modules["flax" + name.removeprefix("refax")] = importlib.import_module(name)
    sys.meta_path.insert(0, _Finder)  # type: ignore[arg-type]
    for name in _ADDED.keys() & sys.modules.keys():
        setattr(sys.modules[name], *_ADDED[name])
    _install_in_children()


class _Install:
    """What loads `refax.as_flax` in the process that unpickles it."""

    def __reduce__(self) -> Any:
        return exec, (f"import sys; sys.path[:] = {sys.path!r}; import refax.as_flax",)


def _install_in_children() -> None:
    """Have a process that is spawned import this first: its data are read before the program is."""
    prepare = multiprocessing.spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, Any]:
        return {"refax": _Install(), **prepare(name)}

    multiprocessing.spawn.get_preparation_data = get_preparation_data


def main(arguments: list[str]) -> None:
    """Run a program or a module with the arguments that follow it, as `python` does."""
    match arguments:
        case ["-h" | "--help", *_]:
            print(USAGE)
        case ["-m", module, *rest]:
            sys.argv = ["-m", *rest]  # while the packages around the module are imported
            spec = importlib.util.find_spec(module)
            if spec is not None and spec.submodule_search_locations is not None:
                module += ".__main__"
                spec = importlib.util.find_spec(module)
            _run_module(spec, module, rest)
        case [program, *rest] if not program.startswith("-"):
            sys.argv = arguments
            path = os.path.abspath(program)
            own = 0 if sys.flags.safe_path else 1  # the folder that `python -m` has put first
            if (importer := pkgutil.get_importer(path)) is not None:  # a folder or a zip file
                sys.path[:own] = [path]
                _run_module(importer.find_spec("__main__"), f"__main__ in {path!r}", None)
            else:
                sys.path[:own] = [os.path.dirname(os.path.realpath(path))][:own]
                _run_file(path)
        case _:
            print(USAGE, file=sys.stderr)
            raise SystemExit(2)


def _run_file(path: str) -> None:
    loader = SourceFileLoader("__main__", path)
    try:
        source = loader.get_data(path)
    except OSError as error:
        print(f"python -m refax.as_flax: can't open the program: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    _run(loader.source_to_code(source, path), loader, file=path)


def _run_module(spec: Any, name: str, arguments: list[str] | None) -> None:
    if spec is None or spec.loader is None:
        raise SystemExit(f"python -m refax.as_flax: No module named {name}")
    if arguments is not None:
        sys.argv = [spec.origin, *arguments]
    code = spec.loader.get_code(spec.name)
    names = {"file": spec.origin, "spec": spec, "package": spec.parent, "cached": spec.cached}
    _run(code, spec.loader, **names)


def _run(code: CodeType, loader: Any, **names: Any) -> None:
    """Run it as `__main__`, which stays when it has ended: for threads, `atexit` and pickle."""
    program = ModuleType("__main__")
    program.__loader__ = loader
    for name in ("file", "spec", "package", "cached"):
        setattr(program, f"__{name}__", names.get(name))
    sys.modules["__main__"] = program
    exec(code, vars(program))


install()

if __name__ == "__main__":
    main(sys.argv[1:])
