"""The pages of the reference: every public name once, by subject; and every address."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

from tools.manual.definitions import (
    Definition,
    addresses,
    definition_of,
    docstring_of,
    imports_of,
    is_module,
    nested,
    public_names,
)
from tools.manual.examples import examples


class Subject(NamedTuple):
    file: str
    title: str
    about: str
    modules: tuple[str, ...]  # of refax, or whole; what the longest of them fits belongs here
    namespace: str = ""  # a public module all of whose names stand on the page as well


SUBJECTS = (
    Subject(
        "modules", "Modules and Variables", "What a model is made of.",
        ("verbs.module", "verbs.pytree", "verbs.containers", "verbs.data", "objects"),
    ),
    Subject(
        "state", "State, filters and verbs", "What one does with objects outside of a transform.",
        ("graph", "verbs", "lift"),
    ),
    Subject(
        "randomness", "Randomness", "Random streams, and what transforms do with them.",
        ("verbs.rngs", "verbs.random_streams"),
    ),
    Subject(
        "transforms", "Transforms", "JAX's transforms, with objects as arguments.", ("transforms",)
    ),
    Subject("layers", "Layers", "Layers, and what they are configured with.", ("layers",)),
    Subject(
        "activations", "Activations", "Functions of arrays, most of them JAX's own.",
        ("layers.activations", "jax.nn", "jax.numpy"),
    ),
    Subject(
        "initializers", "Initializers", "Functions of a key, a shape and a dtype.", (),
        "refax.nnx.nn.initializers",
    ),
    Subject(
        "training", "Training", "Optimizers, averages, metrics.", ("training",),
        "refax.nnx.training.metrics",
    ),
    Subject("weights", "Weights", "Names, files, checkpoints, PyTorch, export.", ("weights",)),
    Subject(
        "devices", "Devices", "Models over many devices.",
        ("devices", "verbs.spmd", "objects.placing"),
    ),
    Subject(
        "seeing_inside", "Seeing inside", "Tables, hooks, captured values, checks.",
        ("inspect", "graph.plan"),
    ),
    Subject(
        "bridge", "Linen",
        "Linen modules as Modules, and back: a `nnx.bridge.ToLinen` is a module of Linen like any "
        "other. What makes one needs Flax.",
        ("bridge",), "refax.nnx.bridge",
    ),
    Subject(
        "errors", "Errors and warnings", "What is raised, and what is warned of.", (),
        "refax.nnx.errors",
    ),
    Subject(
        "settings", "Modes and types", "Switches of NNX, and names for annotations.",
        ("objects.modes", "objects.extras", "objects.type_names"),
    ),
)  # fmt: skip

ADDRESSES = "reference/addresses.md"
# Where JAX documents a name of its own.
JAX = {"jax.nn": "jax.nn", "jax.numpy": "jax.numpy", "jax.nn.initializers": "jax.nn.initializers"}


def subject_of(name: str, definition: Definition) -> Subject:
    if name.endswith(("Error", "Warning")):
        return next(subject for subject in SUBJECTS if subject.file == "errors")
    module = definition.module
    if definition.kind == "foreign":
        module = imports_of("refax.nnx").get(name, (module, ""))[0]
    fits = [
        (len(prefix), subject)
        for subject in SUBJECTS
        for prefix in subject.modules
        if f"{module}.".startswith((f"refax.{prefix}.", f"{prefix}."))
    ]
    return max(fits, key=lambda fit: fit[0])[1] if fits else SUBJECTS[-1]


@functools.cache
def contents() -> dict[Subject, dict[str, Definition]]:
    """The names of each page: `refax.nnx.Linear` → where it is defined."""
    pages: dict[Subject, dict[str, Definition]] = {subject: {} for subject in SUBJECTS}
    for name, definition in public_names().items():
        pages[subject_of(name, definition)][f"refax.nnx.{name}"] = definition
    known = {definition for page in pages.values() for definition in page.values()}
    for subject in SUBJECTS:
        if subject.namespace:
            for name, definition in public_names(subject.namespace).items():
                if definition not in known:
                    pages[subject][f"{subject.namespace}.{name}"] = definition
    bridge = next(subject for subject in SUBJECTS if subject.file == "bridge")
    for name in ("to_linen", "to_linen_var"):  # which `refax.nnx.bridge` gives when asked for
        pages[bridge][f"refax.nnx.bridge.{name}"] = definition_of("refax.bridge.to_linen", name)
    for name in ("ToLinen", "NNXMeta"):
        pages[bridge][f"refax.nnx.bridge.{name}"] = nested("refax.bridge.to_linen", name)
    return pages


def page_of_each_name() -> dict[str, str]:
    """Full name → page and anchor."""
    return {
        name: f"reference/{subject.file}.md#{name}"
        for subject, names in contents().items()
        for name in names
    }


def pages() -> dict[str, str]:
    """The text of each page of the reference, by its place among the pages."""
    texts = {f"reference/{s.file}.md": "\n".join(page(s, n)) for s, n in contents().items()}
    return {"reference/index.md": "\n".join(index()), **texts, ADDRESSES: "\n".join(address_page())}


def page(subject: Subject, names: dict[str, Definition]) -> Iterator[str]:
    yield f"# {subject.title}\n\n{subject.about}\n"
    for full_name, definition in names.items():
        yield from entry(full_name, definition)


def entry(full_name: str, definition: Definition) -> Iterator[str]:
    name = full_name.rpartition(".")[2]
    shown = full_name.removeprefix("refax.")
    heading = f'## `{shown}` {{ #{full_name} data-toc-label="{name}" }}\n'
    if definition.kind == "foreign":
        yield heading
        yield from foreign(definition)
        return
    if definition.kind == "nested":
        yield heading
        yield from nested_class(definition)
    elif definition.kind == "value":
        yield heading
        if definition.module == "refax.layers.initializers":
            yield f"The initializer of JAX: {jax_link('jax.nn.initializers', name)}."
        else:
            yield "A name for annotations and settings."
    else:
        named = name in imports_of(full_name.rpartition(".")[0])
        yield f"::: {full_name if named else f'{definition.module}.{name}'}\n"
        yield "" if named else f'<a id="{full_name}"></a>\n'
    if ">>>" not in docstring_of(definition) and (example := examples().get(below_nnx(full_name))):
        yield f"**Example**\n\n{example}"
    if name.endswith(("Error", "Warning")):
        yield f"What raises it: [`{name}` among the errors](../errors.md#{name}).\n"
    yield f"\n[source](<source:{definition.file}#{definition.line}>){{ .source }}\n"


def below_nnx(full_name: str) -> str:
    return full_name.removeprefix("refax.nnx.")


def nested_class(definition: Definition) -> Iterator[str]:
    """What a docstring says, and its arguments as a list."""
    about, _, arguments = docstring_of(definition).partition("\n\nArgs:\n")
    yield f"{about}\n"
    for line in arguments.splitlines():
        name, colon, text = line.strip().partition(": ")
        yield f"- `{name}`: {text}" if colon else f"  {line.strip()}"
    yield ""


def foreign(definition: Definition) -> Iterator[str]:
    if definition.module.startswith("jax"):
        yield f"JAX's own: {jax_link(definition.module, definition.name)}.\n"
    else:
        yield f"`{definition.module}.{definition.name}`, under this name for convenience.\n"


def jax_link(module: str, name: str) -> str:
    place = f"https://docs.jax.dev/en/latest/_autosummary/{module}.{name}.html"
    return f"[`{module}.{name}`]({place})"


def index() -> Iterator[str]:
    yield "# Reference\n"
    yield "Every public name of `from refax import nnx`. The examples run in the tests.\n"
    for subject, names in contents().items():
        links = ", ".join(f"[`{n.rpartition('.')[2]}`]({subject.file}.md#{n})" for n in names)
        yield f"## [{subject.title}]({subject.file}.md) {{ #{subject.file} }}\n\n{links}\n"
    yield "## [Addresses](addresses.md) { #addresses }\n\nEvery module below `refax.nnx`.\n"


def address_page() -> Iterator[str]:
    known = {d: (s, n) for s, names in contents().items() for n, d in names.items()}
    yield "# Addresses\n"
    yield "Programs of NNX import from many places; each is here, with the same objects behind.\n"
    for address in addresses():
        yield f"## `{address}` {{ #{address} }}\n"
        cells = []
        for name, definition in public_names(address).items():
            if definition in known:
                subject, full = known[definition]
                cells.append(f"[`{name}`]({subject.file}.md#{full})")
            else:
                cells.append(f"`{name}`")
        modules = [
            n for n, o in imports_of(address).items() if n[0] != "_" and is_module(".".join(o))
        ]
        cells += [f"`{name}`" for name in modules]
        yield ", ".join(cells) + "\n"
