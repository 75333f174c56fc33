"""Views: other attributes, the same Variables."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from refax import nnx

X = jnp.ones((4, 3))


class Net(nnx.Module):
    """With sharing, a cycle, and layers in plain containers."""

    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(1, 3, decode=False, rngs=rngs)
        self.spectral = nnx.SpectralNorm(nnx.Linear(3, 3, rngs=rngs), rngs=rngs)
        self.layers = [nnx.Dropout(0.1, rngs=rngs), {"x": (nnx.Dropout(0.2, rngs=rngs), 1)}]
        self.again = self.drop
        self.me = self

    def __call__(self, x: Any) -> Any:
        return self.norm(self.drop(self.linear(x)))


def make() -> Net:
    return Net(nnx.Rngs(0))


def test_a_view_has_other_modes_and_the_same_variables() -> None:
    net = make()
    view = nnx.view(net, deterministic=True, use_running_average=True, decode=True)
    assert type(view) is Net and view is not net
    layers = [view.drop, view.layers[0], view.layers[1]["x"][0], view.attention]
    assert all(layer.deterministic is True for layer in layers)
    assert view.norm.use_running_average is True and view.spectral.use_running_average is True
    assert view.attention.decode is True and net.attention.decode is False
    for layer in (net.drop, net.layers[0], net.layers[1]["x"][0], net.norm):
        assert not getattr(layer, "deterministic", False)
    assert net.norm.use_running_average is False and net.spectral.use_running_average is False
    mine, theirs = dict(nnx.named_variables(view)), dict(nnx.named_variables(net))
    assert list(mine) == list(theirs) and all(mine[name] is theirs[name] for name in mine)


def test_sharing_and_cycles_are_kept_and_containers_are_new() -> None:
    net = make()
    view = nnx.view(net, deterministic=True)
    assert view.again is view.drop and view.me is view
    assert view.layers is not net.layers and view.layers[1] is not net.layers[1]
    view.layers.append(None)
    assert len(net.layers) == 2


def test_writes_through_a_view_reach_the_original() -> None:
    net = make()
    train, test = nnx.view(net, deterministic=False), nnx.view(net, use_running_average=True)
    train(X)
    assert int(net.drop.rngs.count) == 1 and not np.allclose(net.norm.mean, 0)
    test.linear.bias += 1
    np.testing.assert_array_equal(net.linear.bias, jnp.ones(3))


def test_views_train_together_under_jit_and_grad() -> None:
    net = make()
    train = nnx.view(net, deterministic=False, use_running_average=False)
    test = nnx.view(net, deterministic=True, use_running_average=True)
    optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model: Net, optimizer: Any) -> Any:
        loss, grads = nnx.value_and_grad(lambda m: (m(X) ** 2).mean() + m.linear.bias.sum())(model)
        optimizer.update(model, grads)
        return loss

    before = test(X)
    for _ in range(2):
        step(train, optimizer)
    np.testing.assert_allclose(net.linear.bias, -0.2 * jnp.ones(3), atol=1e-2)
    assert int(net.drop.rngs.count) == 2 and not np.allclose(test(X), before)


def test_views_inside_jit_and_grad() -> None:
    net = make()

    @nnx.jit
    def score(model: Net) -> Any:
        view = nnx.view(model, deterministic=True, use_running_average=True)
        view.linear.bias += 1
        return view(X), view

    y, view = score(net)
    np.testing.assert_array_equal(net.linear.bias, jnp.ones(3))
    assert view.linear.bias is net.linear.bias and view.drop.deterministic
    assert not net.drop.deterministic
    np.testing.assert_allclose(y, view(X), rtol=1e-6)
    grads = nnx.grad(lambda m: nnx.view(m, deterministic=True)(X).sum())(net)
    assert grads["linear"]["kernel"].shape == (3, 3)


@pytest.mark.parametrize("container", [lambda *x: list(x), lambda *x: dict(enumerate(x))])
def test_containers_of_modules(container: Any) -> None:
    a, b = nnx.Dropout(0.5), nnx.Dropout(0.1)
    view = nnx.view(container(a, b, a), deterministic=True)
    assert view[0].deterministic and view[1].deterministic and view[0] is view[2]
    assert not a.deterministic


def test_filters_choose_layers() -> None:
    net = make()
    by_type = nnx.view(net, only=nnx.Dropout, deterministic=True)
    assert by_type.drop.deterministic and by_type.attention.deterministic is None
    by_path = nnx.view(net, nnx.PathContains("layers"), deterministic=True)
    assert by_path.layers[0].deterministic and not by_path.drop.deterministic
    with pytest.raises(ValueError, match="deterministic"):
        nnx.view(net, only=nnx.BatchNorm, deterministic=True)


def test_none_leaves_a_mode_as_it_is() -> None:
    layer = nnx.Dropout(0.5, deterministic=True)
    assert nnx.view(layer, deterministic=None).deterministic is True


@pytest.mark.parametrize("verb", [nnx.view, nnx.with_attributes])
def test_a_misspelt_name_is_an_error_with_a_place(verb: Any) -> None:
    net = make()
    with pytest.raises(ValueError, match=r"'determinstic'.*Did you mean 'deterministic' \(`.+`\)"):
        verb(net, determinstic=True, use_running_average=True)
    assert net.norm.use_running_average is False
    view = verb(net, determinstic=True, use_running_average=True, raise_if_not_found=False)
    assert view.norm.use_running_average is True and not hasattr(view, "determinstic")


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_extra_names_of_train_and_eval_are_checked(mode: str) -> None:
    net = make()
    with pytest.raises(ValueError, match=r"'decod'.*Did you mean 'decode'"):
        getattr(net, mode)(decod=True)
    getattr(net, mode)(decode=True)
    assert net.attention.decode is True and net.drop.deterministic is (mode == "eval")
    getattr(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), mode)()  # has no modes


def test_a_cache_of_its_own() -> None:
    net = make()
    view = nnx.view(net, decode=True, batch_size=2, max_length=5)
    assert view.attention.cached_key.shape == (2, 5, 1, 3) and net.attention.cached_key is None
    assert view.attention(jnp.ones((2, 1, 3))).shape == (2, 1, 3)
    many = nnx.view(net, batch_size=(2, 4), max_length=5)
    assert many.attention.cached_value.shape == (2, 4, 5, 1, 3)
    with pytest.raises(ValueError, match="max_length"):
        nnx.view(net, decode=True, batch_size=2)


class Loud(nnx.Pytree):
    def __init__(self) -> None:
        self.loud = False
        self.volume = 1

    def set_view(self, loud: bool | None = None, volume: int | None = None) -> None:
        """How it speaks.

        Args:
          loud: whether it shouts,
            which is heard far away.
          volume (int): by how much.

        Returns:
          nothing: at all
        """
        self.loud = self.loud if loud is None else loud
        self.volume = self.volume if volume is None else volume


class Takes(nnx.Module):
    def __init__(self) -> None:
        self.on = False

    def set_view(self, on: bool | None = None, **kwargs: Any) -> dict[str, Any]:
        self.on = self.on if on is None else on
        return kwargs


class Quieter(Loud):
    def set_view(self, quiet: bool | None = None, **modes: Any) -> None:
        super().set_view(**modes)
        if quiet is not None:
            self.volume = 0


def test_own_set_view() -> None:
    both = nnx.List([Loud(), Takes()])
    view = nnx.view(both, loud=True, on=True, volume=3)
    assert (view[0].loud, view[0].volume, view[1].on) == (True, 3, True)
    assert (both[0].loud, both[0].volume, both[1].on) == (False, 1, False)
    with pytest.raises(ValueError, match=r"'lound'.*'loud' \(`\[0\]`\)"):
        nnx.view(both, lound=True, on=True)
    quiet = nnx.view(Quieter(), quiet=True)
    assert quiet.volume == 0


def test_information() -> None:
    assert nnx.view_info(nnx.Dict(a=Loud(), b=Loud(), c=Takes())) == (
        "Loud:\n"
        "  loud: bool | None = None\n"
        "    whether it shouts,\n"
        "    which is heard far away.\n"
        "  volume: int | None = None\n"
        "    by how much.\n"
        "Takes:\n"
        "  on: bool | None = None"
    )
    text = nnx.view_info(make())
    for name in ("BatchNorm:", "Dropout:", "MultiHeadAttention:", "SpectralNorm:"):
        assert name in text
    for mode in ("deterministic: bool | None = None", "decode: ", "batch_size: ", "max_length: "):
        assert mode in text
    assert nnx.view_info(make(), only=nnx.Dropout).startswith("Dropout:")
    assert nnx.view_info(nnx.Linear(1, 1, rngs=nnx.Rngs(0))) == ""


def test_with_attributes_sets_any_attribute() -> None:
    net = make()
    view = nnx.with_attributes(net, rate=0.9)
    assert view.drop.rate == view.layers[0].rate == 0.9 and net.drop.rate == 0.5
    assert view.linear.kernel is net.linear.kernel
    view = nnx.with_attributes(net, only=nnx.PathContains("layers"), rate=0.9)
    assert view.layers[0].rate == 0.9 and view.drop.rate == 0.5
    pair = nnx.with_attributes([nnx.Dropout(0.5), nnx.Dropout(0.5)], rate=0.1)
    assert [layer.rate for layer in pair] == [0.1, 0.1]


def test_modes_of_the_graph_are_no_attributes() -> None:
    assert nnx.view(nnx.Dropout(0.5), deterministic=True, graph=False).deterministic
    assert nnx.with_attributes(nnx.Dropout(0.5), rate=0.1, graph=True).rate == 0.1


def test_a_view_of_a_view_and_of_a_scanned_stack() -> None:
    make_block = nnx.vmap(lambda key: Net(nnx.Rngs(key)))
    stack = make_block(jax.random.split(jax.random.key(0), 2))
    view = nnx.view(nnx.view(stack, deterministic=True), use_running_average=True)
    assert view.drop.deterministic and view.linear.kernel is stack.linear.kernel
    forward = nnx.scan(lambda m, x: m(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    assert forward(view, X).shape == X.shape and (stack.drop.rngs.count == 0).all()
