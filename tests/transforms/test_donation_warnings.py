"""JAX's warning about donated buffers that were no use names arguments by their paths."""

import re
import threading
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from refax import nnx

START = "Some donated buffers were not usable: "


class Model(nnx.Module):
    def __init__(self) -> None:
        self.layers = [nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))]


def warned(call: Any, action: Any = "always") -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter(action)
        call()
    ours = [w for w in found if str(w.message).startswith(START)]
    for w in ours:
        assert w.category is UserWarning and w.filename == __file__, w
        assert "\nCure: donate only" in str(w.message) and "(test_donation" not in w.filename
    return [str(w.message).removeprefix(START).split(".\n")[0] for w in ours]


def use(model: Any, x: Any, y: Any = 0.0, **more: Any) -> Any:
    model.layers[0].kernel += 1.0
    return x.sum() + y.sum()


def arrays(*shapes: Any) -> list[Any]:
    return [jnp.ones(shape) for shape in shapes]


def test_an_argument_is_named() -> None:
    step = nnx.jit(use, donate_argnums=(0, 1))
    model = Model()
    x, y = arrays((5, 4), (5, 4))
    assert warned(lambda: step(model, x, y)) == ["`x` (float32[5,4])"]
    x, y = arrays((5, 4), (5, 4))
    assert warned(lambda: step(model, x, y)) == []  # it is compiled
    x, y = arrays((6, 4), (6, 4))
    assert warned(lambda: step(model, x, y)) == ["`x` (float32[6,4])"]
    np.testing.assert_allclose(model.layers[0].kernel - Model().layers[0].kernel, 3, rtol=1e-5)
    again = nnx.jit(use, donate_argnums=1)
    assert warned(lambda: again.lower(Model(), *arrays((2, 9), 3))) == ["`x` (float32[2,9])"]


def test_several_of_one_shape() -> None:
    def first(a: Any, b: Any, c: Any, d: Any) -> Any:
        return a["x"] * 2 + b * c.sum() + d

    step = nnx.jit(first, donate_argnums=(0, 1, 2))
    a, b, c, d = arrays((3,), (3,), (4,), (3,))
    [told] = warned(lambda: step({"x": a}, b, c, d))
    assert told == "1 of `a['x']`, `b` (float32[3]); `c` (float32[4])"
    many = nnx.jit(lambda xs: xs[0].sum(), donate_argnums=0)
    [told] = warned(lambda: many(arrays(*[(7,)] * 20)))
    assert told.endswith("`xs[7]` and 12 more (float32[7])")


def test_by_keyword_in_objects_and_as_a_method() -> None:
    step = nnx.jit(use, donate_argnames="y")
    assert warned(lambda: step(Model(), *arrays(1), y=jnp.ones((8, 2)))) == ["`y` (float32[8,2])"]

    class Holder(nnx.Module):
        def __init__(self) -> None:
            self.parts = {"a": nnx.Param(jnp.ones((4, 2)))}

        @nnx.jit(donate_argnums=0)
        def shrink(self) -> None:
            self.parts["a"].value = self.parts["a"].value[:2]

    holder = Holder()
    assert warned(holder.shrink) == ["`self.parts.a` (float32[4,2])"]
    assert holder.parts["a"].shape == (2, 2)


def test_where_warnings_are_errors_nothing_is_lost() -> None:
    step = nnx.jit(use, donate_argnums=(0, 1))
    model, before = Model(), np.asarray(Model().layers[0].kernel)
    x, y = arrays((3, 5), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=re.escape(f"{START}`x` (float32[3,5])")):
            step(model, x, y)
    np.testing.assert_array_equal(model.layers[0].kernel, before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", START)
        step(model, x, y)
    np.testing.assert_array_equal(model.layers[0].kernel, before + 1)
    assert warned(lambda: step(model, *arrays((9, 5), 1)), "ignore") == []


def test_other_warnings_stay_as_they_are() -> None:
    @nnx.jit(donate_argnums=0)
    def step(x: Any) -> Any:
        warnings.warn("mine", DeprecationWarning, stacklevel=1)
        with warnings.catch_warnings(record=True) as inside:
            warnings.warn("kept", stacklevel=1)
        assert len(inside) == 1
        return x.sum()

    line = step.__wrapped__.__code__.co_firstlineno + 2
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        step(jnp.ones(3))
    assert [(str(w.message)[:4], w.category) for w in found] == [
        ("mine", DeprecationWarning),
        ("Some", UserWarning),
    ]
    assert found[0].lineno == line and found[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="mine"), pytest.warns(UserWarning, match="`x`"):
        step(jnp.ones(4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DeprecationWarning, match="mine"):
            step(jnp.ones(5))
        with pytest.raises(ZeroDivisionError):
            nnx.jit(lambda x: 1 / 0, donate_argnums=0)(jnp.ones(2))
    assert warnings.showwarning.__module__ != __name__


def test_inside_of_another_and_in_threads() -> None:
    inner = nnx.jit(lambda x: x.sum(), donate_argnums=0)
    outer = nnx.jit(lambda x, y: inner(x) + y.sum(), donate_argnums=1)
    assert warned(lambda: outer(*arrays((2, 2), (3, 2)))) == ["`y` (float32[3,2])"]
    filters, shown = list(warnings.filters), warnings.showwarning

    def run(n: int) -> None:
        nnx.jit(lambda x: x.sum() + n, donate_argnums=0)(jnp.ones((n, 3)))

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=run, args=(n,)) for n in range(2, 6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        warnings.warn("after", stacklevel=1)
    assert "after" in [str(w.message) for w in found]
    assert warnings.filters == filters and warnings.showwarning is shown


def test_warnings_of_other_threads_are_theirs() -> None:
    """Also of one that records warnings from within the trace until after it."""
    entered, over = threading.Event(), threading.Event()
    inside: list[str] = []

    def other() -> None:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            entered.set()
            over.wait(60)
            warnings.warn(f"{START}float32[7].", stacklevel=1)
            inside.extend(str(w.message) for w in found)

    @nnx.jit(donate_argnums=0)
    def step(x: Any) -> Any:
        thread.start()
        entered.wait(60)
        return x.sum()

    thread = threading.Thread(target=other)
    step(jnp.ones(3))
    over.set()
    thread.join(60)
    assert f"{START}float32[7]." in inside
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        warnings.warn("shown", stacklevel=1)
    assert [str(w.message) for w in found] == ["shown"]
    shown: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warnings, "_showwarnmsg_impl", lambda m: shown.append(str(m.message)))
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("plain", stacklevel=1)
    assert shown == ["plain"]


def test_what_is_shown_once_stays_shown_once() -> None:
    def warn() -> None:
        warnings.warn("once", stacklevel=1)

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for n in range(3):
            warn()
            nnx.jit(lambda x: x.sum(), donate_argnums=0)(jnp.ones(n + 2))
    assert [str(w.message) for w in found].count("once") == 1
