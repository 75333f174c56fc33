"""What a function can reach decides whether its eager programs are kept."""

import sys
import sysconfig
import types

import jax.numpy as jnp
import pytest

from refax import nnx
from refax.lift.closures import reads_objects
from tests.transforms.observing import Counted, assert_warm


def test_a_body_with_an_assert_compiles_once():
    """Pytest puts a module of its own into every function that has one."""

    def body(c, x):
        assert x.shape == ()
        return c + x, x

    def positive(x):
        assert x.shape == ()
        return x * 2.0

    def small(x):
        assert x.shape == ()
        return x < 5.0

    def double(i, x):
        assert x.shape == ()
        return x * 2.0

    counted = [Counted(f) for f in (body, positive, small, double)]
    assert any(name.startswith("@") for name in body.__globals__), "asserts are not rewritten"

    def go():
        nnx.scan(body)(jnp.array(0.0), jnp.arange(3.0))
        nnx.scan(counted[0].function)(jnp.array(0.0), jnp.arange(3.0))
        nnx.cond(True, positive, counted[1].function, 1.0)
        nnx.while_loop(small, positive, 1.0)
        nnx.while_loop(counted[2].function, positive, 1.0)
        nnx.fori_loop(0, 3, double, 1.0)
        nnx.fori_loop(0, 3, counted[3].function, 1.0)

    assert_warm(go, *counted)


def test_what_an_installed_package_holds_is_read_if_it_knows_refax(monkeypatch):
    """A package beside refax may have a model of its own; pytest and einops have none."""
    with_model = types.ModuleType("with_model")
    exec("from refax import nnx\nv = nnx.Variable(1.0)\ndef f(x): return x * v", vars(with_model))
    without = types.ModuleType("without")
    exec("def f(x): return x", vars(without))
    place = sysconfig.get_paths()["purelib"]
    for module in (with_model, without):
        module.__file__ = f"{place}/{module.__name__}.py"
        vars(module)["f"].__module__ = module.__name__
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert reads_objects(lambda x: with_model.f(x)) and reads_objects(with_model.f)
    assert not reads_objects(lambda x: without.f(x))
    assert not reads_objects(pytest.importorskip)
