"""`profile_table`: its counts are those of XLA's cost analysis, and of closed forms."""

import copy
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refax import nnx
from refax.inspect.program_costs import Program

# -- counts ---------------------------------------------------------------------------------------

VECTOR, BITS, MATRIX = jnp.linspace(0.1, 2, 64), jnp.arange(64, dtype=jnp.uint32), jnp.eye(8)
IMAGE, KERNEL = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))


def convolve(image, kernel, stride=2):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        image, kernel, (stride, stride), "SAME", dimension_numbers=numbers
    )


def square_sum(x):
    return (x**2).sum()


OPERATIONS = {
    "elementwise": (lambda v, u: jnp.where(v > 1, v * 2, -v) + (u ^ 3).astype(v.dtype),
                    (VECTOR, BITS)),
    "transcendental": (lambda v: jnp.exp(v) + jnp.sin(v) * jnp.log(v) + v**2.5, (VECTOR,)),
    "dot": (lambda m, n: jnp.einsum("bij,bjk->bik", m, n),
            (jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6)))),
    "reduce": (lambda m: m.sum(0) + m.max(1) + m.argmax(0), (MATRIX,)),
    "cumsum": (jnp.cumsum, (VECTOR,)),
    "sort": (jnp.sort, (VECTOR,)),
    "scatter": (lambda v, u: v.at[u[:5]].add(1.0), (VECTOR, BITS)),
    "softmax": (jax.nn.softmax, (MATRIX,)),
    "random": (lambda u: jax.random.normal(jax.random.key(u[0]), (64,)), (BITS,)),
    "convolution": (lambda x, k: convolve(x, k), (IMAGE, KERNEL)),
    "convolution, by image": (jax.grad(lambda x, k: square_sum(convolve(x, k))), (IMAGE, KERNEL)),
    "convolution, by kernel": (
        jax.grad(lambda k, x: square_sum(convolve(x, k))), (KERNEL, IMAGE)),
    "pool": (
        jax.grad(lambda m: nnx.max_pool(m[None, :, :, None], (2, 2), (2, 2)).sum()), (MATRIX,)),
    "loop": (
        lambda m: jax.lax.scan(lambda x, _: (jnp.tanh(x @ m), x.sum()), m, None, length=5),
        (MATRIX,)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_count_as_in_the_cost_analysis_of_xla(name):
    function, arguments = OPERATIONS[name]
    compiled = jax.jit(function).lower(*arguments).compile()
    costs, analysis = list(Program(compiled.as_text()).costs()), compiled.cost_analysis()
    assert sum(cost.flops for cost in costs) == pytest.approx(analysis.get("flops", 0), rel=0.01)
    read = sum(cost.bytes for cost in costs)
    assert read == pytest.approx(analysis["bytes accessed"], rel=0.05)


def test_loops_say_how_often_they_run():
    function, arguments = OPERATIONS["loop"]
    costs = Program(jax.jit(function).lower(*arguments).compile().as_text()).costs()
    assert {cost.runs for cost in costs if "dot_general" in cost.scope} == {5}


# -- models ---------------------------------------------------------------------------------------


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(16, rngs=rngs)
        self.up = nnx.Linear(16, 64, rngs=rngs)
        self.down = nnx.Linear(64, 16, rngs=rngs)

    def __call__(self, x):
        return x + self.down(jax.nn.gelu(self.up(self.norm(x))))


class Model(nnx.Module):
    def __init__(self, rngs, stacked=False):
        self.embed = nnx.Embed(32, 16, rngs=rngs)
        if stacked:
            self.blocks = nnx.Stack(Block, 2, rngs=rngs)
        else:
            self.blocks = nnx.Sequential(*[Block(rngs) for _ in range(2)])

    def __call__(self, tokens):
        return self.embed.attend(self.blocks(self.embed(tokens)))


TOKENS = jnp.arange(16).reshape(2, 8)


def loss(model, tokens):
    return optax.softmax_cross_entropy_with_integer_labels(model(tokens), tokens).mean()


def train_step(model, optimizer, tokens):
    value, grads = nnx.value_and_grad(loss)(model, tokens)
    optimizer.update(model, grads)
    return value


@pytest.fixture(scope="module", params=[False, True], ids=["loop", "Stack"])
def trained(request):
    model = Model(nnx.Rngs(0), request.param)
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    before = nnx.pure(nnx.state((model, optimizer)))
    table = nnx.profile_table(train_step, model, optimizer, TOKENS)
    after = nnx.pure(nnx.state((model, optimizer)))
    jax.tree.map(np.testing.assert_array_equal, before, after)  # they stay as they are
    compiled = nnx.jit(train_step).lower(model, optimizer, TOKENS).compile()
    return request.param, model, table, compiled


def test_totals_are_those_of_xla(trained):
    _, model, table, compiled = trained
    analysis = compiled.cost_analysis()
    assert table.total.flops == pytest.approx(analysis["flops"], rel=0.01)
    assert table.total.bytes == pytest.approx(analysis["bytes accessed"], rel=0.01)
    for column in ("flops", "bytes", "temporary"):
        summed = sum(getattr(row, column) for row in table.rows)
        assert summed == pytest.approx(getattr(table.total, column), rel=1e-6)
    # What is of no Module is the loss.
    outside = [row for row in table.rows if not row.path]
    assert sum(row.flops for row in outside) < 0.05 * table.total.flops
    parameters = {row.path: row.parameters for row in table.rows}
    count = sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert sum(parameters.values()) == table.total.parameters == count
    assert table.total.temporary == compiled.memory_analysis().temp_size_in_bytes


def test_forward_backward_and_update_are_told_apart(trained):
    stacked, _, table, _ = trained
    found = {(row.path, row.phase): row for row in table.rows}
    up = "model.blocks.blocks[*].up" if stacked else "model.blocks.layers.1.up"
    forward, backward = found[up, "forward"], found[up, "backward"]
    dots = 2 * 16 * 16 * 64  # two FLOPs a multiplication: tokens × in × out
    assert dots <= forward.flops <= 1.2 * dots  # with the bias, which XLA adds again and again
    assert 2 * dots <= backward.flops <= 2.3 * dots
    assert forward.parameters == (16 * 64 + 64) * (2 if stacked else 1)
    assert forward.runs == (2 if stacked else 1)
    assert found["optimizer.update", "update"].flops > 0
    assert {phase for _, phase in found} == {"forward", "backward", "update"}
    assert not any(path.startswith("optimizer") for path, phase in found if phase != "update")


def test_the_time_of_a_run_is_that_of_its_rows(trained):
    table = trained[2]
    if table.total.seconds is None:
        pytest.skip("this platform's profiler tells no operations")
    assert 0 < table.total.seconds < 10
    summed = sum(row.seconds or 0 for row in table.rows)
    assert summed == pytest.approx(table.total.seconds)
    ordered = [row.seconds or 0 for row in table.rows]
    assert ordered == sorted(ordered, reverse=True)


def test_the_table_fits_a_terminal_and_sums_up_what_it_leaves_out(trained):
    table = trained[2]
    lines = str(table).splitlines()
    assert max(map(len, lines)) <= 80
    text = table.render(rows=3)
    assert f"… {len(table.rows) - 3} more" in text
    assert len(text.splitlines()) < 12
    assert repr(table) == str(table) and lines[0].split()[0] == "module"
    assert [line for line in lines if line.startswith("total")] == [lines[-2]]
    assert lines[-1].startswith("temp: estimated") and "XLA" in lines[-1]
    assert max(map(len, table.render(width=70).splitlines())) <= 70


def test_rows_are_grouped_by_depth(trained):
    table = trained[2]
    grouped = table.grouped(1)
    assert {row.path for row in grouped.rows} == {"", "model", "optimizer"}
    for column in ("flops", "bytes", "temporary"):
        summed = sum(getattr(row, column) for row in grouped.rows)
        assert summed == pytest.approx(sum(getattr(row, column) for row in table.rows))
    model = next(row for row in grouped.rows if row.path == "model")
    assert model.parameters == table.total.parameters


def test_a_chart_needs_matplotlib_only_when_it_is_drawn(trained, tmp_path):
    pytest.importorskip("matplotlib")
    figure = trained[2].plot(tmp_path / "costs.png", column="bytes", rows=5)
    assert (tmp_path / "costs.png").stat().st_size > 1000
    assert len(figure.axes[0].patches) == 5


def test_forms_of_functions():
    model = Block(nnx.Rngs(0))
    dots = 2 * 16 * 16 * 64
    x = jnp.ones((2, 8, 16))
    for function, arguments in (
        (model, (x,)),
        (nnx.jit(lambda m, x: m(x)), (model, x)),
        (jax.jit(lambda m, x: m(x)), (model, x)),
        (lambda x: model(x), (x,)),
    ):
        table = nnx.profile_table(function, *arguments, measure_time=False)
        ups = [row.flops for row in table.rows if row.path.endswith(".up")]
        assert len(ups) == 1 and dots <= ups[0] <= 1.1 * dots, function
        assert table.total.seconds is None and "time" not in str(table)


def test_donated_arguments_are_not_given_away():
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit(donate_argnums=(0, 1))
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(lambda m: m(x).sum())(model))

    kept = copy.deepcopy(nnx.state(model))
    table = nnx.profile_table(step, model, optimizer, jnp.ones((3, 2)))
    assert table.total.flops > 0
    jax.tree.map(np.testing.assert_array_equal, nnx.pure(kept), nnx.pure(nnx.state(model)))


def test_importing_refax_draws_nothing():
    code = "import sys; from refax import nnx; assert not {'matplotlib', 'rich'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
