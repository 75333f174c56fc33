"""`nnx.cached_partial`: a step on its objects, which keep their structure."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refax import nnx
from tests.models import Count, Dense, Node, Stateful

X = jnp.ones((3, 2))


def model() -> Node:
    return Node(
        layer=Stateful(), items=[Dense(2, 2)], array=jnp.zeros(2), mode="train", rngs=nnx.Rngs(0)
    )


def arrays(obj) -> list:
    leaves = jax.tree.leaves(nnx.state(obj))
    is_key = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves]
    return [
        np.asarray(jax.random.key_data(x) if key else x).tolist()
        for x, key in zip(leaves, is_key, strict=True)
    ]


def test_what_is_written_reaches_the_originals():
    m = model()
    optimizer = nnx.Optimizer(m, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(m, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda m: m.items[0](m.layer(x)).sum())(m)
        optimizer.update(m, grads)
        return loss + m.rngs.normal(())

    other = nnx.clone((m, optimizer))
    cached = nnx.cached_partial(step, m, optimizer)
    assert cached.__name__ == "step"
    with nnx.assert_max_traces(1):
        losses = [float(cached(X)) for _ in range(3)]
    assert losses == [float(step(*other, X)) for _ in range(3)]
    assert arrays((m, optimizer)) == arrays(other)
    assert int(m.layer.count) == int(optimizer.step) == int(m.rngs.default.count) == 3


def test_the_cached_objects_are_copies_that_share_variables():
    m = model()
    seen = []
    cached = nnx.cached_partial(lambda a, b, x: seen.append((a, b)) or a.mode, m, [m.items[0]])
    (a, [b]) = (cached(X), seen[-1])[1]
    assert a is not m and a.items is not m.items and a.items[0] is b  # sharing kept
    assert b.kernel is m.items[0].kernel and a.layer.count is m.layer.count
    m.mode = "eval"
    m.items.append(Dense(2, 2))
    m.layer = Dense(2, 2)
    assert cached(X) == "train" and seen[-1][0] is a and len(a.items) == 1


def new_attribute(m):
    m.layer.extra = nnx.Param(jnp.ones(2))


def deleted(m):
    del m.layer.count


def another_static(m):
    m.mode = "eval"


def longer_list(m):
    m.items.append(Dense(2, 2))


def another_array(m):
    m.array = m.array + 1


def another_variable(m):
    m.layer.count = Count(jnp.array(9))


def swapped(m):
    m.layer.mean, m.layer.scale = m.layer.scale, m.layer.mean


def metadata(m):
    m.layer.count.tag = "new"


CHANGES = {
    new_attribute: "m.layer.extra: nothing → Param",
    deleted: "m.layer.count: Count → nothing",
    another_static: "m.mode: 'train' → 'eval'",
    longer_list: "m.items[1]: nothing → Dense",
    another_array: "m.array: another Array",
    another_variable: "m.layer.count: another Count",
    swapped: "m.layer.mean: BatchStat → Param",
    metadata: "m.layer.count.tag: nothing → 'new'",
}


WAYS = {
    "jit": lambda f: nnx.jit(f, static_argnames="really"),
    "remat": lambda f: nnx.remat(f, static_argnames="really"),
    "eager": lambda f: f,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_change_of_structure_is_an_error_and_undone(change, way):
    m = model()
    before, graphdef = arrays(m), nnx.graphdef(m)

    def step(m, x, really):
        m.layer.mean += 1.0
        y = m.layer(x)
        if really:
            change(m)
        return y

    expected = step(nnx.clone(m), X, really=False)
    cached = nnx.cached_partial(WAYS[way](step), m)
    for _ in range(2):
        with pytest.raises(nnx.StructureError, match="nnx.cached_partial") as caught:
            cached(X, really=True)
        assert CHANGES[change] in str(caught.value).replace("ArrayImpl", "Array")
        assert "Cure: " in str(caught.value)
        assert nnx.graphdef(m) == graphdef and arrays(m) == before
    np.testing.assert_allclose(cached(X, really=False), expected)  # usable after the error
    assert int(m.layer.count) == 1


def test_other_arguments_than_objects_are_fixed_too():
    cached = nnx.cached_partial(lambda a, v, f, x: f(a * v) + x, 2.0, nnx.Param(3.0), jnp.sin)
    np.testing.assert_allclose(cached(1.0), np.sin(6.0) + 1, rtol=1e-6)
    np.testing.assert_allclose(nnx.cached_partial(jnp.add)(1, 2), 3)
