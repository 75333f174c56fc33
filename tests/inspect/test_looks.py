"""What is shown fits a terminal of 80 columns, and a notebook shows it as it is."""

import html
import importlib.util
import re
import sys
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from refax import nnx

X = jnp.ones((2, 12))


class Attention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.query_key_value = nnx.Linear(12, 12, rngs=rngs)
        self.options = nnx.static({"a" * 30: "b" * 30, "c" * 30: "d" * 30})

    def __call__(self, x: Any) -> Any:
        return jnp.tanh(self.query_key_value(x))


class Model(nnx.Module):
    """Deep, with long names and values of many digits."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.encoder = {"self_attention_of_the_encoder": [Attention(rngs) for _ in range(2)]}
        self.encoder["self_attention_of_the_encoder"][1].wide = nnx.Param(jnp.ones(3) / 3e7)

    def __call__(self, x: Any) -> Any:
        for block in self.encoder["self_attention_of_the_encoder"]:
            x = block(x)
        return jnp.log(x - 9)


MODEL = Model()
PATH = "encoder.self_attention_of_the_encoder.1.query_key_value"


def step() -> Any:
    f = nnx.jit(lambda m, x: m(x).sum())
    f(MODEL, X), f(MODEL, X[:1])
    return f


SHOWN: dict[str, Any] = {
    "a model": lambda: MODEL,
    "an optimizer": lambda: nnx.Optimizer(MODEL, optax.adam(1e-3), wrt=nnx.Param),
    "a State": lambda: nnx.state(MODEL),
    "a GraphDef": lambda: nnx.graphdef(MODEL),
    "a Variable": lambda: nnx.Param(jnp.arange(40.0).reshape(4, 10) / 7e9),
    "an integer Variable": lambda: nnx.Param(jnp.arange(39) * 12345),
    "sharding_report": lambda: nnx.sharding_report(MODEL),
    "find_nonfinite": lambda: nnx.find_nonfinite(MODEL, X),
    "explain": lambda: step().explain(),
    "profile_table": lambda: nnx.profile_table(MODEL, X, measure_time=False),
    "tabulate": lambda: nnx.tabulate(MODEL, X, columns=("type", "outputs", "Param")),
    "Loaded": lambda: nnx.load_state_dict(
        MODEL, {f"other.{i}.kernel_of_something": X for i in range(9)}, strict=False
    ),
}
REPORTS = (
    "a GraphDef", "sharding_report", "find_nonfinite", "explain", "profile_table", "tabulate",
)  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_lines_fit_in_80_columns(name: str) -> None:
    value = SHOWN[name]()
    lines = repr(value).split("\n")
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    assert len(lines) > 1 and "\\n" not in repr(value)
    assert not any(line != line.rstrip() for line in lines)


def test_a_long_path_keeps_its_keys() -> None:
    names = [line.split()[0] for line in nnx.sharding_report(MODEL).split("\n")]
    assert len(set(names)) == len(names)  # the blocks are told apart
    [name] = [name for name in names if ".1." in name and "kernel" in name]
    for key, whole in zip(name.split("."), f"{PATH}.kernel".split("."), strict=True):
        assert whole.startswith(key.rstrip("…")) and (len(key) > 3 or key == whole), name
    assert "…" in name and "…" not in nnx.sharding_report(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


def test_arrays_are_aligned_under_what_they_belong_to() -> None:
    variable = nnx.Param(jnp.arange(24.0).reshape(2, 12) * 1.125)
    assert (
        repr(nnx.Dict(a=variable))
        == """\
Dict({
  'a': Param( # 24 (96 B)
    value=Array([[ 0.   ,  1.125,  2.25 ,  3.375,  4.5  ,  5.625,  6.75 ,
                   7.875,  9.   , 10.125, 11.25 , 12.375],
                 [13.5  , 14.625, 15.75 , 16.875, 18.   , 19.125, 20.25 ,
                  21.375, 22.5  , 23.625, 24.75 , 25.875]], dtype=float32)
  )
})"""
    )


def test_tables_fit_the_terminal_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(table: str) -> str:
        cells = [re.split("[│┃]", line) for line in table.split("\n") if re.search("[│┃]", line)]
        return "".join("".join(part.strip() for part in column) for column in zip(*cells))

    whole = nnx.tabulate(MODEL, X)
    assert max(map(len, whole.split("\n"))) > 80 and "kernel: float32[12,12]" in whole
    assert isinstance(whole, str) and repr(whole) == whole
    monkeypatch.setenv("COLUMNS", "80")
    narrow = nnx.tabulate(MODEL, X)
    assert max(map(len, narrow.split("\n"))) <= 80
    for text in ("kernel:float32[12,12]", "self_attention_of_the_encoder/0", "315(1.3KB)"):
        assert text in words(narrow).replace(" ", ""), narrow
    small = nnx.tabulate(MODEL.encoder["self_attention_of_the_encoder"][0], X, columns=["type"])
    assert "Attention │" in small  # what fits is as it was
    given = nnx.tabulate(MODEL, X, console_kwargs={"width": 120})
    assert max(map(len, given.split("\n"))) == 120


@pytest.mark.parametrize("name", REPORTS)
def test_reports_in_a_notebook(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = SHOWN[name]()
    page = report._repr_html_()
    tag, _, rest = page.partition(">")
    assert tag.startswith("<pre style=") and "white-space: pre" in tag
    assert "color" not in tag and "background" not in tag  # those of a dark theme are as good
    assert html.unescape(rest.removesuffix("</pre>")) == repr(report)
    shown: list[Any] = []
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    library = SimpleNamespace(get_ipython=lambda: shell, __path__=[])
    monkeypatch.setitem(sys.modules, "IPython", library)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=shown.append))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "treescope")
    monkeypatch.setitem(sys.modules, "treescope", SimpleNamespace(display=None))
    nnx.display(report)
    assert shown == [report] and capsys.readouterr().out == ""


# treescope imports `numpy.char`, which NumPy 2.5 deprecates
@pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")
def test_objects_in_a_notebook() -> None:
    treescope = pytest.importorskip("treescope")
    for value, words in (
        (MODEL, ["Model(", "Attention(", "'self_attention_of_the_encoder'", "Param("]),
        (nnx.state(MODEL), ["'encoder'", "'query_key_value'", "Param("]),
        (nnx.Optimizer(MODEL, optax.sgd(0.1), wrt=nnx.Param), ["Optimizer(", "OptState("]),
    ):
        page = treescope.render_to_html(value, ignore_exceptions=False, compressed=False)
        text = html.unescape(re.sub(r"<(script|style).*?</\1>|<[^>]*>", "", page, flags=re.DOTALL))
        for word in words:
            assert word in text, word
        assert " object at 0x" not in text


def test_texts_of_a_report_can_be_compared_and_copied() -> None:
    report = nnx.sharding_report(MODEL)
    assert report == str(report) and report.split("\n")[0].startswith("name")
    assert report.bytes_per_device > 0 and jax.tree.leaves(report) == [report]
