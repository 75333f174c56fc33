"""Where each public name is defined: read from the source, without importing refax."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"


class Definition(NamedTuple):
    """`module` defines `name` in the given line of its file; a foreign name has no line."""

    module: str
    name: str
    # "class", "function", "value"; "nested": a class in a function; "foreign": it is imported.
    kind: str
    line: int = 0
    bases: tuple[str, ...] = ()
    documented: bool = False

    @property
    def file(self) -> str:
        return file_of(self.module).relative_to(ROOT).as_posix()


def file_of(module: str) -> Path:
    path = SOURCE / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(file_of(module).read_text(encoding="utf-8"))


def target_of(node: ast.ImportFrom, module: str) -> str:
    """The module that an import reads from."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + (file_of(module).name == "__init__.py")]
    return ".".join([*parts, *([node.module] if node.module else [])])


def is_module(module: str) -> bool:
    return module.startswith("refax") and file_of(module).exists()


@functools.cache
def imports_of(module: str) -> dict[str, tuple[str, str]]:
    """What a file of names gives on: name → (module that it comes from, name there)."""
    found: dict[str, tuple[str, str]] = {}
    body = list(tree_of(module).body)
    for node in body:  # which grows: what is loaded later stands in a branch for checkers
        if isinstance(node, ast.If):
            body += node.body
        if isinstance(node, ast.ImportFrom):
            target = target_of(node, module)
            for alias in node.names:
                if alias.name == "*":
                    found.update({n: (target, n) for n in imports_of(target) if n[0] != "_"})
                else:
                    found[alias.asname or alias.name] = (target, alias.name)
    return found


def public_names(module: str = "refax.nnx") -> dict[str, Definition]:
    """The names of a public module that are no modules, each with its definition."""
    names = {
        name: definition_of(*origin)
        for name, origin in imports_of(module).items()
        if name[0] != "_" and origin[0] != "typing" and not is_module(".".join(origin))
    }
    return dict(sorted(names.items(), key=lambda item: (item[0].lower(), item[0])))


def addresses(module: str = "refax.nnx") -> Iterator[str]:
    """The public modules below `module`, at every depth."""
    folder = file_of(module).parent
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name != module:
            yield name


@functools.cache
def definition_of(module: str, name: str) -> Definition:
    if not is_module(module):
        return Definition(module, name, "foreign")
    for node in tree_of(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            is_class = isinstance(node, ast.ClassDef)
            bases = tuple(map(ast.unparse, node.bases)) if is_class else ()
            kind = "class" if is_class else "function"
            documented = ast.get_docstring(node) is not None
            if documented or kind == "class":  # not an overload
                return Definition(module, name, kind, node.lineno, bases, documented)
    for node in tree_of(module).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return Definition(module, name, "function", node.lineno)
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        for target in targets:
            if name in (n.id for n in ast.walk(target) if isinstance(n, ast.Name)):
                return Definition(module, name, "value", node.lineno)
    if name in imports_of(module):
        return definition_of(*imports_of(module)[name])
    raise LookupError(f"{module} does not define {name}")


@functools.cache
def docstring_of(definition: Definition) -> str:
    """The docstring of what is defined there (of overloads, that of the last)."""
    found = [
        ast.get_docstring(node) or ""
        for node in (ast.walk(tree_of(definition.module)) if is_module(definition.module) else ())
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == definition.name
    ]
    return max(found, key=len, default="")


def nested(module: str, name: str) -> Definition:
    """A class that a function of the module makes."""
    classes = (n for n in ast.walk(tree_of(module)) if isinstance(n, ast.ClassDef))
    line = next(n.lineno for n in classes if n.name == name)
    return Definition(module, name, "nested", line, documented=True)


def all_classes() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(module, name, bases) of each class of the library."""
    for path in sorted((SOURCE / "refax").rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                yield (
                    module.removesuffix(".__init__"),
                    node.name,
                    tuple(map(ast.unparse, node.bases)),
                )
