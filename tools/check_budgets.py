"""Check the library's budgets: its size, its floors, its imports.

    python tools/check_budgets.py [--package src/refax] [--strict-import | --no-import-time]

Each violation is one line: where, what, and the cure. The exit status is 1 if there is any.

What is checked (the floors are told in CONTRIBUTING.md):

- lines: those of code in the whole package (docstrings, comments and blank lines apart, and `nnx/`,
  which holds names only); of each file, all. The package is over its budget, which is told; what
  fails is more than a bound that only goes down;
- floors: a module imports only from its own folder and from floors below, also inside functions;
- no two modules import each other, at module level, inside functions or for annotations;
- JAX's private and experimental modules only in `_jax_compat.py`; peers nowhere but in
  `bridge/to_linen.py`; heavy libraries only inside functions;
- the time of `import refax.nnx` over that of `import jax, optax` (a warning: machines are noisy).
"""

import argparse
import ast
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

BUDGET = 14_000  # of code; what is over is told at every run
MAX_TOTAL_LINES = 19_651  # what there is: more is a decision, less is better
MAX_FILE_LINES = 500
MAX_IMPORT_RATIO = 1.10

# The first part of a module's name inside the package → its floor; "" is the package itself.
FLOORS = {
    "_jax_compat": 0,
    "objects": 1,
    "graph": 2,
    "verbs": 3,
    "lift": 4,
    "transforms": 5,
    "layers": 6,
    "bridge": 7,
    "devices": 7,
    "inspect": 7,
    "training": 7,
    "weights": 7,
    "nnx": 8,
    "as_flax": 9,
    "": 9,
}
# Only these may import the package itself, and nothing may import them.
FACES = {"", "nnx", "as_flax"}
COMPAT = "_jax_compat"
# The one file that may import Flax, in functions only: when a Linen module is made.
LINEN = "bridge.to_linen"

PRIVATE_JAX = ("jax._src", "jax.experimental", "jax.extend", "jaxlib")
PEERS = ("flax", "equinox", "haiku", "penzai")
HEAVY = ("orbax", "treescope", "rich", "matplotlib", "safetensors", "sklearn", "IPython")


@dataclass(frozen=True, order=True)
class Violation:
    path: str
    line: int
    what: str
    cure: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.what} → {self.cure}"


@dataclass(frozen=True)
class Import:
    """One imported name, absolute: `from ..lift import rebuild` gives target `refax.lift.rebuild`.

    The last part of a target may be a module or a name in one: `Module.resolve` tells.
    """

    target: str
    line: int
    last_line: int
    runs_at_import: bool  # not in a function, not under `if TYPE_CHECKING`


@dataclass
class Module:
    name: str  # "refax.graph.variable"; a package's `__init__.py` has the package's name
    path: Path
    shown: str  # the path to print
    lines: list[str]
    code_lines: int
    imports: list[Import] = field(default_factory=list)

    @property
    def floor_name(self) -> str:
        """`graph` for `refax.graph.variable`, the empty string for the package itself."""
        return floor_name(self.name)


def floor_name(module: str) -> str:
    return (module.split(".") + [""])[1]


# ── Reading ───────────────────────────────────────────────────────────────────────────────────


def read_package(package: Path) -> dict[str, Module]:
    """All modules of the package by name, in the order of their paths."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        text = path.read_text(encoding="utf-8")
        shown = os.path.relpath(path)
        tree, lines = ast.parse(text, filename=str(path)), text.splitlines()
        shown = path.as_posix() if ".." in shown else shown
        module = Module(name, path, shown, lines, count_code_lines(tree, lines))
        base = name if is_package else name.rpartition(".")[0]
        module.imports = list(imports_of(tree, base))
        modules[name] = module
    return modules


def imports_of(node: ast.AST, package: str, runs_at_import: bool = True) -> Iterator[Import]:
    """Every import under `node`, however deep, and every use of a private part of `jax.`."""

    def found(target: str, node: ast.stmt | ast.expr) -> Import:
        return Import(target, node.lineno, node.end_lineno or node.lineno, runs_at_import)

    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
            runs_at_import = False
        case ast.If(test=test) if ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                yield from imports_of(child, package, False)
            for child in node.orelse:
                yield from imports_of(child, package, runs_at_import)
            return
        case ast.Import(names=names):
            for alias in names:
                yield found(alias.name, node)
        case ast.ImportFrom(module=module, names=names, level=level):
            base = module or ""
            if level:
                above = package.split(".")[: len(package.split(".")) - level + 1]
                base = ".".join([*above, *([module] if module else [])])
            for alias in names:
                yield found(base if alias.name == "*" else f"{base}.{alias.name}", node)
        case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]) if is_importer(func):
            if not name.startswith("."):
                yield found(name, node)
        case ast.Attribute(value=ast.Name(id="jax"), attr=attribute):
            if matches(f"jax.{attribute}", PRIVATE_JAX):
                yield found(f"jax.{attribute}", node)
    for child in ast.iter_child_nodes(node):
        yield from imports_of(child, package, runs_at_import)


def is_importer(function: ast.expr) -> bool:
    return ast.unparse(function) in ("importlib.import_module", "import_module", "__import__")


def matches(target: str, names: tuple[str, ...]) -> bool:
    return any(target == name or target.startswith(name + ".") for name in names)


def resolve(target: str, modules: dict[str, Module]) -> str:
    """The module that an import of `target` names: itself, or the one that holds it."""
    while target not in modules and "." in target:
        target = target.rpartition(".")[0]
    return target


def count_code_lines(tree: ast.Module, lines: list[str]) -> int:
    """The lines that are neither blank, nor a comment alone, nor part of a docstring."""
    documented: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                documented.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return sum(
        number not in documented and bool(line.strip()) and not line.lstrip().startswith("#")
        for number, line in enumerate(lines, 1)
    )


# ── Checking ──────────────────────────────────────────────────────────────────────────────────


def check_size(modules: dict[str, Module]) -> Iterator[Violation]:
    for module in modules.values():
        if len(module.lines) > MAX_FILE_LINES:
            yield Violation(
                module.shown,
                len(module.lines),
                f"{len(module.lines)} lines, a file may have {MAX_FILE_LINES}",
                "split it: one noun or one family of verbs a file",
            )
    counted = [module for module in modules.values() if module.floor_name != "nnx"]
    total = sum(module.code_lines for module in counted)
    if total > MAX_TOTAL_LINES:
        largest = max(counted, key=lambda module: len(module.lines))
        yield Violation(
            largest.shown,
            len(largest.lines),
            f"the package has {total:,} lines of code, it may have {MAX_TOTAL_LINES:,} "
            "(largest file here)",
            "look for a mechanism that is written twice",
        )


def check_floors(modules: dict[str, Module], package: str) -> Iterator[Violation]:
    for module in modules.values():
        own = module.floor_name
        if own not in FLOORS:
            yield Violation(
                module.shown,
                1,
                f"`{own}` stands on no floor",
                "move it into a floor's folder, or give it a floor in FLOORS of check_budgets.py",
            )
            continue
        for imported in module.imports:
            if not matches(imported.target, (package,)):
                continue
            target = resolve(imported.target, modules)
            other = floor_name(imported.target)
            if other not in FLOORS:
                if floor_name(target):
                    continue  # that module stands on no floor, which is its own violation
                other = ""  # a name of the root package
            if other == own or FLOORS[other] < FLOORS[own]:
                continue
            if other == "" and own in FACES:
                continue
            if other == "":
                what = f"imports the root package ({imported.target})"
                cure = "import from the floor's folder that defines it"
            else:
                direction = "above" if FLOORS[other] > FLOORS[own] else "beside"
                named = target if floor_name(target) else imported.target
                what = (
                    f"{own} (floor {FLOORS[own]}) imports {named}, "
                    f"{direction} it (floor {FLOORS[other]})"
                )
                cure = "move what is shared down a floor, or pass it in as an argument"
            yield Violation(module.shown, imported.line, what, cure)


def check_libraries(modules: dict[str, Module], package: str) -> Iterator[Violation]:
    """Peers, JAX's private parts, heavy libraries."""
    for module in modules.values():
        for imported in module.imports:
            top = imported.target.split(".")[0]
            linen = module.name == f"{package}.{LINEN}" and top == "flax"
            if linen and not imported.runs_at_import:
                continue
            if matches(imported.target, PEERS):
                what, cure = f"imports the peer {top}", "write it here; compare with it in tests/"
            elif matches(imported.target, PRIVATE_JAX) and module.name != f"{package}.{COMPAT}":
                what = f"uses {imported.target}, private or experimental"
                cure = f"use a public name, or name it in {COMPAT}.py with a fallback"
            elif matches(imported.target, HEAVY) and imported.runs_at_import:
                what = f"imports {top} at module level, which makes `import {package}` slow"
                cure = "import it inside the function that uses it"
            else:
                continue
            yield Violation(module.shown, imported.line, what, cure)


def check_cycles(modules: dict[str, Module]) -> Iterator[Violation]:
    """One violation for each knot of modules that import one another, inside functions or not."""
    edges: dict[str, dict[str, int]] = {name: {} for name in modules}
    for name, module in modules.items():
        for imported in module.imports:
            target = resolve(imported.target, modules)
            if target in modules and target != name:
                edges[name].setdefault(target, imported.line)
    for knot in knots(edges):
        cycle = shortest_cycle(min(knot), edges)
        module = modules[cycle[0]]
        yield Violation(
            module.shown,
            edges[cycle[0]][cycle[1]],
            "a cycle of imports: " + " → ".join(cycle),
            "move what both need into a module below them",
        )


def knots(edges: dict[str, dict[str, int]]) -> list[set[str]]:
    """The sets of two or more nodes that all reach one another."""
    reached = {start: reachable(start, edges) for start in edges}
    found: list[set[str]] = []
    for start in edges:
        knot = {other for other in reached[start] if start in reached[other]}
        if knot and knot not in found:
            found.append(knot)
    return found


def reachable(start: str, edges: dict[str, dict[str, int]]) -> set[str]:
    """The nodes that a walk of one step or more from `start` comes to."""
    seen: set[str] = set()
    todo = list(edges[start])
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += edges[node]
    return seen


def shortest_cycle(start: str, edges: dict[str, dict[str, int]]) -> list[str]:
    """The nodes of a shortest walk from `start` back to `start`, which is both first and last."""
    walks = [[start]]
    seen: set[str] = set()
    for walk in walks:
        for following in edges[walk[-1]]:
            if following == start:
                return [*walk, start]
            if following not in seen:
                seen.add(following)
                walks.append([*walk, following])
    raise AssertionError(f"{start} lies on no cycle")


def check_package(package: Path) -> tuple[dict[str, Module], list[Violation]]:
    """All violations that can be read off the source, in the order of files and lines."""
    modules = read_package(package)
    violations = {
        *check_size(modules),
        *check_floors(modules, package.name),
        *check_libraries(modules, package.name),
        *check_cycles(modules),
    }
    return modules, sorted(violations)


# ── Import time ───────────────────────────────────────────────────────────────────────────────

BASE_IMPORT = "import jax, optax"
# Without the garbage collector: when it next goes through all that JAX has made, which takes as
# long as our own import, is a matter of chance.
MEASURE = """
import gc, sys, time
gc.disable()
start = time.perf_counter()
{statement}
print(time.perf_counter() - start, *{{name.split('.')[0] for name in sys.modules}})
"""


def import_once(statement: str, folder: Path) -> tuple[float, set[str]]:
    """Seconds that a fresh interpreter takes for it, and the top-level modules that it loaded.

    `folder` comes first on the interpreter's path.
    """
    command = [sys.executable, "-c", MEASURE.format(statement=statement)]
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed is compiled already
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    if run.returncode:
        raise ImportError((run.stderr.strip().splitlines() or ["no message"])[-1])
    seconds, *loaded = run.stdout.split()
    return float(seconds), set(loaded)


def import_ratio(statement: str, folder: Path, rounds: int = 5) -> tuple[float, set[str]]:
    """The median time over that of `import jax, optax`, and the heavy libraries or peers loaded."""
    import_once(BASE_IMPORT, folder)  # the first one reads the files from disk
    import_once(statement, folder)
    pairs = [
        (import_once(BASE_IMPORT, folder), import_once(statement, folder)) for _ in range(rounds)
    ]
    base = statistics.median(seconds for (seconds, _), _ in pairs)
    ours = statistics.median(seconds for _, (seconds, _) in pairs)
    (_, loaded_by_base), (_, loaded_by_us) = pairs[0]
    return ours / base, (loaded_by_us - loaded_by_base) & {*PEERS, *HEAVY}


def check_import(package: Path, strict: bool) -> tuple[str, list[Violation]]:
    """A line to print, and the violations."""
    statement = f"import {package.name}.nnx"
    face = str(package / "nnx")
    try:
        ratio, loaded = import_ratio(statement, package.parent)
        if ratio > MAX_IMPORT_RATIO:  # once more: another program may have been in the way
            ratio = min(ratio, import_ratio(statement, package.parent)[0])
    except ImportError as error:
        return "", [Violation(face, 1, f"`{statement}` fails: {error}", "see that it imports")]
    violations = [
        Violation(face, 1, f"`{statement}` loads {name}", "import it inside the function using it")
        for name in sorted(loaded)
    ]
    line = f"`{statement}` takes {ratio:.2f}× the time of `{BASE_IMPORT}`"
    if ratio > MAX_IMPORT_RATIO:
        what = f"{line}; at most {MAX_IMPORT_RATIO:.2f}× is allowed"
        cure = f"see what costs it: python -X importtime -c '{statement}'"
        if strict:
            violations.append(Violation(face, 1, what, cure))
        line = f"warning: {what} → {cure}"
    return line, violations


# ── The command ───────────────────────────────────────────────────────────────────────────────


def summary(modules: dict[str, Module]) -> str:
    sizes = {module.shown: len(module.lines) for module in modules.values()}
    largest = max(sizes, key=lambda shown: sizes[shown])
    code = sum(module.code_lines for module in modules.values() if module.floor_name != "nnx")
    total = sum(sizes.values())
    verdict = f"{code - BUDGET:,} over" if code > BUDGET else "within"
    return (
        f"budgets: {code:,} lines of code, {verdict} the budget of {BUDGET:,} (at most "
        f"{MAX_TOTAL_LINES:,}), {total:,} lines in all; "
        f"{len(sizes)} files; "
        f"median {statistics.median(sizes.values()):.0f}, largest {sizes[largest]} of "
        f"{MAX_FILE_LINES} ({largest})"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Check the library's budgets.")
    default = Path(__file__).resolve().parent.parent / "src" / "refax"
    parser.add_argument("--package", type=Path, default=default)
    timing = parser.add_mutually_exclusive_group()
    timing.add_argument("--strict-import", action="store_true", help="a slow import is a violation")
    timing.add_argument("--no-import-time", action="store_true", help="do not measure the import")
    options = parser.parse_args(arguments)

    package = options.package.resolve()
    modules, violations = check_package(package)
    if not modules:
        print(f"{package} holds no Python file")
        return 1
    print(summary(modules))
    if not options.no_import_time:
        line, more = check_import(package, options.strict_import)
        violations += more
        if line:
            print(line)
    for violation in violations:
        print(violation)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
