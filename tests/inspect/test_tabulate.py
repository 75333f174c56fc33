"""`tabulate`: its rows and numbers against counts by hand; and the model as it was."""

import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

pytestmark = pytest.mark.usefixtures("strict_numerics")


@pytest.fixture(autouse=True)
def a_wide_terminal(monkeypatch: pytest.MonkeyPatch, no_terminal: None) -> None:
    """Also where the tests run in a narrow one."""
    monkeypatch.setenv("COLUMNS", "400")


M, K, N, H = 5, 3, 7, 4  # batch, inputs, outputs, hidden


class Block(nnx.Module):
    def __init__(self, inputs, outputs, rngs):
        self.linear = nnx.Linear(inputs, outputs, rngs=rngs)
        self.norm = nnx.BatchNorm(outputs, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.dropout(self.norm(self.linear(x))))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.blocks = [Block(K, H, rngs), Block(H, N, rngs)]

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x

    def first(self, x, *, scale=1.0, name="", unused=None):
        return self.blocks[0](x) * scale


def rows_of(table: str) -> list[dict[str, list[str]]]:
    """The rows of a table that was rendered with lines: column → the lines in its cell."""
    lines = [line for line in table.split("\n") if line and line[0] in "┏┃┡│├"]
    header = [cell.strip() for cell in lines[1].strip("┃").split("┃")]
    rows: list[dict[str, list[str]]] = [{name: [] for name in header}]
    for line in lines[3:]:
        if line.startswith("├"):
            rows.append({name: [] for name in header})
            continue
        for name, cell in zip(header, line.strip("│").split("│"), strict=True):
            rows[-1][name] += [cell.strip()] if cell.strip() else []
    return rows


X = jnp.ones((M, K))


class Methods(nnx.Module):
    """A model whose work is in methods of all names."""

    def __init__(self, rngs):
        self.parts = [Net(rngs)]
        self.embed = nnx.Embed(3, N, rngs=rngs)

    def encode(self, x, scale=2.0):
        return self._encode(x) * scale

    def _encode(self, x):
        return self.parts[0].first(x, scale=3.0)

    def __call__(self, x):
        return self.encode(x), self.embed.attend(self.parts[0](x))


def test_a_row_for_each_method_that_runs():
    *rows, _ = rows_of(nnx.tabulate(Methods(nnx.Rngs(0)), X))
    assert [row["path"][0] if row["path"] else "" for row in rows] == [
        "", "encode", "parts/0/first", "parts/0/blocks/0", "parts/0/blocks/0/linear",
        "parts/0/blocks/0/norm", "parts/0/blocks/0/dropout", "parts/0", "parts/0/blocks/1",
        "parts/0/blocks/1/linear", "parts/0/blocks/1/norm", "parts/0/blocks/1/dropout",
        "embed/attend",
    ]  # fmt: skip
    by_path = {row["path"][0]: row for row in rows[1:]}
    assert by_path["embed/attend"]["type"] == ["Embed"]
    assert by_path["embed/attend"]["outputs"] == [f"float32[{M},3]"]
    assert by_path["parts/0/first"]["inputs"] == [f"float32[{M},{K}]", "scale: 3.0"]
    assert by_path["encode"]["type"] == ["Methods"]
    for method in ("encode", "_encode"):
        rows = rows_of(nnx.tabulate(Methods(nnx.Rngs(0)), X, method=method))
        assert rows[0]["path"] == [method] and rows[1]["path"] == ["parts/0/first"]


def test_the_filter_that_programs_name_leaves_out_nothing_else():
    plain = nnx.tabulate(Net(nnx.Rngs(0)), X)
    assert nnx.tabulate(Net(nnx.Rngs(0)), X, row_filter=nnx.summary.filter_rng_streams) == plain


def test_operations_of_each_method_are_counted():
    table = nnx.tabulate(Methods(nnx.Rngs(0)), X, compute_flops=True, compute_vjp_flops=True)
    [attend] = [row for row in rows_of(table) if row["path"] == ["embed/attend"]]
    assert attend["flops"] == [f"{2 * M * N * 3:,}"]
    assert int(attend["vjp_flops"][0].replace(",", "")) >= 3 * 2 * M * N * 3


def test_a_row_for_each_call_in_order():
    *rows, totals = rows_of(nnx.tabulate(Net(nnx.Rngs(0)), X))
    assert [row["path"] for row in rows] == [
        [],
        ["blocks/0"],
        ["blocks/0/linear"],
        ["blocks/0/norm"],
        ["blocks/0/dropout"],
        ["blocks/1"],
        ["blocks/1/linear"],
        ["blocks/1/norm"],
        ["blocks/1/dropout"],
    ]
    assert [row["type"] for row in rows[:3]] == [["Net"], ["Block"], ["Linear"]]
    assert rows[0]["inputs"] == [f"float32[{M},{K}]"]
    assert rows[0]["outputs"] == [f"float32[{M},{N}]"]
    assert rows[2]["outputs"] == rows[5]["inputs"] == [f"float32[{M},{H}]"]
    first, second = K * H + H, H * N + N
    assert rows[2]["Param"] == [
        f"bias: float32[{H}]",
        f"kernel: float32[{K},{H}]",
        f"{first} ({first * 4} B)",
    ]
    assert rows[3]["BatchStat"][-1] == f"{2 * H} ({2 * H * 4} B)"
    assert rows[1]["Param"] == [f"{first + 2 * H} ({(first + 2 * H) * 4} B)"]
    total = first + second + 2 * (H + N)
    assert rows[0]["Param"] == totals["Param"] == [f"{total} ({total * 4} B)"]
    assert totals["RngState"] == ["4 (24 B)"]  # two keys of 8 bytes, two counts of 4
    assert totals["outputs"] == ["Total"]


def flops(model, *args, column="flops", row=0, **options):
    options = {f"compute_{column}": True, **options}
    [text] = rows_of(nnx.tabulate(model, *args, **options))[row][column]
    return int(text.replace(",", ""))


def test_flops_of_a_product():
    bare = nnx.Linear(K, N, use_bias=False, rngs=nnx.Rngs(0))
    product = 2 * M * K * N
    assert flops(bare, X) == product
    assert flops(nnx.Linear(K, N, rngs=nnx.Rngs(0)), X) == product + M * N
    # forward, the gradient of the kernel, and that of the input: three products
    assert flops(bare, X, column="vjp_flops") == 3 * product
    both = nnx.Sequential(bare, nnx.Linear(N, H, use_bias=False, rngs=nnx.Rngs(0)))
    inner = 2 * M * N * H
    assert [flops(both, X, row=i) for i in range(3)] == [product + inner, product, inner]
    assert flops(both, X, column="vjp_flops") == 3 * (product + inner)


def test_flops_that_nobody_can_tell():
    class Loop(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            return jax.lax.while_loop(lambda x: x.sum() < 9.0, lambda x: x + self.w, x)

    model = Loop()
    [row, _] = rows_of(nnx.tabulate(model, X, compute_flops=True, compute_vjp_flops=True))
    assert row["vjp_flops"] == ["-"]  # JAX has no reverse mode of a while loop
    assert int(row["flops"][0]) > 0


def test_flops_of_models_with_state_and_random_streams_as_arguments():
    class Noisy(nnx.Module):
        def __init__(self):
            self.calls = nnx.Variable(jnp.array(0))

        def __call__(self, x, rngs):
            self.calls += 1
            self.sow(nnx.Intermediate, "x", x)
            return x + rngs.normal(x.shape)

    model, rngs = Noisy(), nnx.Rngs(0)
    row, _ = rows_of(nnx.tabulate(model, X, rngs, compute_flops=True, compute_vjp_flops=True))
    assert row["inputs"] == [f"float32[{M},{K}]", "Rngs"]
    assert int(row["flops"][0].replace(",", "")) > M * K < int(row["vjp_flops"][0].replace(",", ""))
    assert rngs.default.count.value == 0 and model.calls.value == 0


def fingerprint(model):
    values = jax.tree.leaves(nnx.state(model, nnx.Not(nnx.RngKey)))
    return nnx.graphdef(model), list(map(id, values)), [id(m) for _, m in nnx.iter_graph(model)]


def test_the_model_stays_as_it_is():
    model = Net(nnx.Rngs(0))
    nnx.jit(lambda m, x: m(x))(model, X)  # with a plan on it
    before = fingerprint(model)
    for options in ({}, {"compute_flops": True, "compute_vjp_flops": True}):
        nnx.tabulate(model, X, **options)
        assert fingerprint(model) == before
    with pytest.raises(ValueError, match="in_features"):
        nnx.tabulate(model, jnp.ones((M, K + 1)))
    assert fingerprint(model) == before
    assert type(model.blocks[0].linear) is nnx.Linear


def test_abstract_models_and_inputs():
    concrete = nnx.tabulate(Net(nnx.Rngs(0)), X, compute_flops=True)
    model = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    assert nnx.tabulate(model, shape, compute_flops=True) == concrete


def test_shared_variables_are_counted_once():
    class Tied(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Linear(K, K, use_bias=False, rngs=rngs)
            self.head = nnx.Linear(K, K, use_bias=False, rngs=rngs)
            self.head.kernel = self.embed.kernel
            self.again = self.embed

        def __call__(self, x):
            return self.head(self.again(self.embed(x)))

    rows = rows_of(nnx.tabulate(Tied(nnx.Rngs(0)), X))
    # `again` is `embed`: one object, one path; its second call looks like the first
    assert [row["path"] for row in rows] == [[], ["again"], ["head"], []]
    assert rows[1]["Param"] == [f"kernel: float32[{K},{K}]", f"{K * K} ({K * K * 4} B)"]
    assert rows[2]["Param"] == [f"kernel: float32[{K},{K}] (shared with again/kernel)"]
    assert rows[0]["Param"] == rows[-1]["Param"] == rows[1]["Param"][-1:]


def test_another_method_with_keywords_and_values_that_are_not_traced():
    options = {"scale": 2.0, "name": "x", "unused": None}
    table = nnx.tabulate(Net(nnx.Rngs(0)), X, method="first", **options)
    rows = rows_of(table)
    assert rows[0]["inputs"] == [f"float32[{M},{K}]", "name: 'x'", "scale: 2.0"]
    assert rows[0]["outputs"] == [f"float32[{M},{H}]"]
    assert [row["path"] for row in rows[1:3]] == [["blocks/0"], ["blocks/0/linear"]]
    product = 2 * M * K * H + M * H
    assert flops(Net(nnx.Rngs(0)), X, row=2, method="first") == product


def test_depth_columns_filters_and_rich_options():
    model = Net(nnx.Rngs(0))
    *rows, _ = rows_of(nnx.tabulate(model, X, depth=1))
    assert [row["path"] for row in rows] == [[], ["blocks/0"], ["blocks/1"]]
    assert len(rows_of(nnx.tabulate(model, X, depth=0))) == 2
    rows = rows_of(nnx.tabulate(model, X, columns=("Param", "type")))
    assert list(rows[0]) == ["Param", "type"] and rows[-1]["type"] == ["Total"]
    rows = rows_of(nnx.tabulate(model, X, variable_types=nnx.BatchStat))
    assert list(rows[0]) == ["path", "type", "inputs", "outputs", "BatchStat"]
    rows = rows_of(nnx.tabulate(model, X, row_filter=lambda row: row.type == "Linear"))
    assert [row["path"] for row in rows] == [["blocks/0/linear"], ["blocks/1/linear"], []]
    table = nnx.tabulate(
        model,
        X,
        table_kwargs={"title": "My model", "caption": None},
        column_kwargs={"justify": "right"},
        console_kwargs={"width": 60, "force_terminal": True},
    )
    assert "My model" in table and "Total:" not in table and "\x1b[" in table
    with pytest.raises(ValueError, match=r"columns: .* no 'Params'\. Did you mean 'Param'.*\nCure"):
        nnx.tabulate(model, X, columns=("Params",))
    with pytest.raises(TypeError, match=r"Net has no method `forward`\.\nCure"):
        nnx.tabulate(model, X, method="forward")
    with pytest.raises(TypeError, match="obj={}, but must be of type Module"):
        nnx.tabulate({}, X)


def test_without_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ImportError, match="needs rich.\nCure"):
        nnx.tabulate(nnx.Linear(K, N, rngs=nnx.Rngs(0)), X)


def test_arrays_and_containers_belong_to_the_module_that_holds_them():
    class Holder(nnx.Module):
        def __init__(self):
            self.offset = jnp.ones(K)
            self.parts = {"a": [nnx.Param(jnp.ones(K)), nnx.Param({"b": jnp.ones((2, K))})]}

        def __call__(self, x):
            return {"y": x + self.offset[None], "n": (x, None)}

    row, _ = rows_of(nnx.tabulate(Holder(), X))
    assert row["Array"][0] == f"offset: float32[{K}]"
    assert row["Param"] == [
        f"parts/a/0: float32[{K}]",
        f"parts/a/1: {{'b': float32[2,{K}]}}",
        f"{3 * K} ({3 * K * 4} B)",
    ]
    shape = f"float32[{M},{K}]"
    assert row["outputs"] == [f"{{'n': ({shape}, None), 'y': {shape}}}"]


LAYERS = 6


class Stacked(nnx.Module):
    """Blocks in one scan, and the same in a vmap and under remat, jit and cond."""

    def __init__(self):
        make = nnx.vmap(lambda key: nnx.Linear(K, K, rngs=nnx.Rngs(key)))
        self.layers = make(jax.random.split(jax.random.key(0), LAYERS))

    def __call__(self, x):
        scan = nnx.scan(lambda m, x: m(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return scan(self.layers, x)


@pytest.mark.parametrize(
    "wrap",
    [
        nnx.jit,
        nnx.remat,
        nnx.vmap(lambda m, x: m(x), in_axes=(None, 0)),
        lambda m, x: nnx.cond(True, lambda m, x: m(x), lambda m, x: m(-x), m, x),
    ],
    ids=["jit", "remat", "vmap", "cond"],
)
def test_modules_inside_transforms_have_rows(wrap):
    class Wrapped(nnx.Module):
        def __init__(self):
            self.inner = nnx.Linear(K, N, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return wrap(self.inner, x) if wrap is not nnx.jit else nnx.jit(self.inner)(x)

    if wrap is nnx.remat:
        wrap = nnx.remat(lambda m, x: m(x))
    rows = rows_of(nnx.tabulate(Wrapped(), X))
    assert [row["path"] for row in rows] == [[], ["inner"], []]


def test_a_scan_over_stacked_layers():
    *rows, totals = rows_of(nnx.tabulate(Stacked(), X, compute_flops=True))
    assert [row["path"] for row in rows] == [[], ["layers"]]
    assert rows[1]["inputs"] == [f"float32[{M},{K}]"]
    assert rows[1]["Param"][1] == f"kernel: float32[{LAYERS},{K},{K}]"
    assert totals["Param"] == [f"{LAYERS * (K * K + K)} ({LAYERS * (K * K + K) * 4} B)"]
    assert rows[1]["flops"] == [f"{2 * M * K * K + M * K}"]  # of one step


class Deep(nnx.Module):
    def __init__(self, blocks, rngs):
        self.blocks = [Block(K, K, rngs) for _ in range(blocks)]
        self.last = nnx.Linear(K, K, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def test_collapsed_repeats():
    model = Deep(12, nnx.Rngs(0))
    *rows, totals = rows_of(nnx.tabulate(model, X, collapse=True, compute_flops=True))
    assert [row["path"] for row in rows[1:]] == [
        ["blocks/0…11"],
        ["blocks/0…11/linear"],
        ["blocks/0…11/norm"],
        ["blocks/0…11/dropout"],
        ["last"],
    ]
    assert rows[2]["type"] == ["Linear ×12"] and rows[-1]["type"] == ["Linear"]
    whole = rows_of(nnx.tabulate(model, X, compute_flops=True))
    assert len(whole) == 1 + 4 * 12 + 1 + 1
    assert whole[-1]["Param"] == totals["Param"] and whole[2]["Param"] == rows[1 + 1]["Param"]
    model.blocks[5].linear = nnx.Linear(K, K, use_bias=False, rngs=nnx.Rngs(0))
    *rows, _ = rows_of(nnx.tabulate(model, X, collapse=True))
    linears = [row for row in rows if row["path"][0:1] and "linear" in row["path"][0]]
    assert [row["path"] for row in linears] == [["blocks/0…11/linear"], ["blocks/5/linear"]]
    assert [row["type"] for row in linears] == [["Linear ×11"], ["Linear"]]


def test_cycles_and_modules_that_are_not_called():
    model = Deep(1, nnx.Rngs(0))
    model.blocks[0].parent = model
    model.unused = nnx.Linear(N, N, use_bias=False, rngs=nnx.Rngs(0))
    *rows, totals = rows_of(nnx.tabulate(model, X))
    assert len(rows) == 6
    expected = 2 * (K * K + K) + 2 * K + N * N
    assert totals["Param"] == rows[0]["Param"] == [f"{expected} ({expected * 4} B)"]


def test_the_names_of_the_arguments_are_those_of_the_peer():
    peer = pytest.importorskip("flax.nnx")
    theirs = inspect.signature(peer.tabulate).parameters
    ours = inspect.signature(nnx.tabulate).parameters
    assert set(theirs) <= set(ours)
    assert list(ours)[:2] == list(theirs)[:2]
    np.testing.assert_equal(ours["method"].default, theirs["method"].default)


def test_bytes_of_each_call_are_a_column_that_is_asked_for():
    model = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
    x = jnp.ones((5, 3))
    table = nnx.tabulate(model, x, columns=("path", "bytes", "flops"), compute_flops=True)
    first = next(line for line in table.splitlines() if "layers/0" in line)
    _, path, read, flops, _ = (cell.strip() for cell in first.split("│"))
    compiled = jax.jit(lambda w, b, x: x @ w + b[None]).lower(jnp.ones((3, 4)), jnp.ones(4), x)
    analysis = compiled.cost_analysis()
    assert int(read.replace(",", "")) == analysis["bytes accessed"]
    assert int(flops.replace(",", "")) == analysis["flops"]
    assert "bytes" not in nnx.tabulate(model, x, compute_flops=True)
