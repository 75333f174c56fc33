"""`display` in and out of notebooks; `repr` of big models."""

import importlib.util
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx
from tests.models import Node


def small() -> nnx.Linear:
    return nnx.Linear(2, 3, rngs=nnx.Rngs(0))


@pytest.fixture
def notebook(monkeypatch):
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_display_prints_outside_of_a_notebook(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "treescope", None)  # an import of it would fail
    for library in (None, SimpleNamespace(get_ipython=lambda: None)):
        monkeypatch.setitem(sys.modules, "IPython", library)
        nnx.display(small(), {"a": 1})
        assert capsys.readouterr().out == f"{small()!r}\n{{'a': 1}}\n"
    terminal = SimpleNamespace(config={"TerminalIPythonApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: terminal))
    nnx.display(small())
    assert capsys.readouterr().out == f"{small()!r}\n"


def test_display_by_treescope_in_a_notebook(capsys, monkeypatch, notebook):
    shown = []

    def display(value, **options):
        shown.append(value)

    monkeypatch.setitem(sys.modules, "treescope", SimpleNamespace(display=display))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "treescope")
    model = small()
    nnx.display(model, 3)
    assert shown == [model, 3] and capsys.readouterr().out == ""


def test_display_in_a_notebook_without_treescope(capsys, monkeypatch, notebook):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    nnx.display(small())
    assert capsys.readouterr().out == f"{small()!r}\n"


# treescope imports `numpy.char`, which NumPy 2.5 deprecates
@pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")
def test_treescope_shows_attributes_values_and_metadata():
    treescope = pytest.importorskip("treescope")
    model = Node(layer=small(), scale=nnx.Param(jnp.ones(2), sharding=("a",)), name="x")
    text = treescope.render_to_text(model, ignore_exceptions=False)
    for part in ("Node(", "Linear(", "kernel=Param(", "sharding=", "name='x'", "in_features=2"):
        assert part in text
    text = treescope.render_to_text(nnx.state(model), ignore_exceptions=False)
    assert "'kernel': Param(" in text


class Block(nnx.Module):
    def __init__(self, size):
        self.norm = Node(scale=nnx.Param(np.ones(size)), bias=nnx.Param(np.zeros(size)))
        self.kernel = nnx.Param(np.ones((size, size)))


def test_a_model_of_many_blocks_shows_one_of_each_kind():
    model = Node(blocks=[Block(8) for _ in range(100)], head=Block(3))
    model.blocks[60:62] = [Block(6), Block(6)]
    lines = repr(model).split("\n")
    assert len(lines) < 120
    more = [line.strip() for line in lines if "more of this structure" in line]
    assert more == [
        "… (59 more of this structure)",
        "… (1 more of this structure)",
        "… (37 more of this structure)",
    ]
    assert any(line.startswith("  head=Block(") for line in lines)
    elements = 98 * (8 * 8 + 2 * 8) + 2 * (6 * 6 + 2 * 6) + 3 * 3 + 2 * 3
    assert lines[0] == f"Node( # Param: {elements:,} ({elements * 4 / 1000:.1f} KB)"
    assert "more of this structure" not in repr(model.blocks[0])


def test_what_cannot_be_collapsed_is_cut():
    model = Node(**{f"layer_{i}": small() for i in range(100)})
    text = repr(model)
    assert len(text.split("\n")) <= 401 and "more)" in text
    assert repr(nnx.state(model)).count("\n") <= 401
    assert "…" not in repr(Node(layers=[small() for _ in range(30)]))


def test_shared_nodes_and_cycles():
    layer = small()
    model = Node(a=layer, b=[layer], kernel=layer.kernel)
    model.me = model
    text = repr(model)
    assert "Linear(…same as a)" in text and "Param(…same as a.kernel)" in text
    assert "me=Node(…same as the root)" in text
    layers = [Node(parent=model, w=nnx.Param(jnp.ones(2))) for _ in range(200)]
    model.layers = layers
    assert len(repr(model).split("\n")) <= 401


def test_big_arrays_tracers_and_keys_are_summarised():
    model = Node(big=nnx.Param(jnp.ones((100, 100))), key=nnx.RngKey(jax.random.key(0)))
    text = repr(model)
    assert "Array(shape=(100, 100), dtype=dtype('float32'))" in text and len(text) < 400
    assert "dtype=key<fry>" in text
    seen = []
    nnx.jit(lambda m: seen.append(repr(m)))(model)
    assert "Traced<float32[100,100]>" in seen[0]


def test_containers_that_hold_themselves_are_shown():
    model = nnx.Module()
    model.items = [1]
    model.items.append(model.items)
    model.table = {"items": model.items, "linear": nnx.Linear(1, 1, rngs=nnx.Rngs(0))}
    model.table["table"] = model.table
    assert "items=[1, [...]]" in repr(model)
    assert repr(nnx.clone(model)) == repr(model)
