"""Names of PyTorch that refax does not have, each with what is written here instead.

Asked only where an attribute, an argument or a public name is missing, so what is there costs
nothing. A table is one text: a line has the names, a colon, and the cure.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable
from typing import Any


def _table(text: str) -> dict[str, str]:
    lines = [line.partition(": ") for line in text.strip().splitlines()]
    return {name: cure for names, _, cure in lines for name in names.split()}


OF_AN_OBJECT = _table("""
zero_grad: nothing, gradients are values: nnx.value_and_grad(loss)(model).
state_dict: nnx.state_dict(object); files are written by nnx.save(path, object), nnx.Checkpoints.
load_state_dict: nnx.load_state_dict(object, arrays); nnx.from_torch(model, arrays) for PyTorch's.
param_groups: a schedule for the learning rate, or optax.inject_hyperparams; optax.partition.
""")
OF_A_MODULE = _table("""
parameters: nnx.state(model, nnx.Param), or model.named_parameters(); nnx.Optimizer takes the model.
named_buffers buffers: nnx.state(model, nnx.BatchStat), or model.named_variables().
children modules: model.iter_children(), model.named_modules().
register_buffer register_parameter: assign, self.name = nnx.BatchStat(array) or nnx.Param(array).
register_forward_hook: nnx.add_forward_hook(module, f).
forward: name the method __call__, and call the module, model(x).
training: model.train() and model.eval() set `deterministic` and `use_running_average`.
to cuda cpu: nothing, arrays are made on the first accelerator; or jax.device_put(model, device).
half bfloat16: dtype=jnp.bfloat16 of the layers, the dtype that they compute in.
requires_grad_: wrt= of nnx.Optimizer says what is trained, nnx.DiffState what has a gradient.
apply: for name, module in model.named_modules(): ….
""")
OF_A_LAYER = _table("""
weight: kernel, which is (in, out) in a Linear; scale in a normalization, embedding in an Embed.
running_mean running_var: mean, var.
""")
OF_AN_ARRAY = _table("""
grad backward: gradients are values of a function: nnx.value_and_grad(loss)(model).
data: variable.value, which is read and assigned.
detach: jax.lax.stop_gradient(variable.value).
numpy: numpy.asarray(variable).
requires_grad requires_grad_: wrt= of nnx.Optimizer and nnx.DiffState choose by a filter.
to cuda cpu: jax.device_put(variable.value, device); variable.value.astype(dtype).
zero_ fill_ copy_ add_ mul_: assign, variable.value = … or variable[index] = ….
""")
PUBLIC = _table("""
Conv ConvTranspose: nnx.Conv(1, 8, (3, 3), rngs=rngs), with an entry in the window for each axis.
BatchNorm InstanceNorm: without the number, nnx.BatchNorm(features, rngs=rngs), ….
Dropout: nnx.Dropout(rate, rngs=rngs); of channels, broadcast_dims=(1, 2) besides.
MaxPool: nnx.max_pool(x, (2, 2), strides=(2, 2)).
AvgPool: nnx.avg_pool(x, (2, 2), strides=(2, 2)).
AdaptiveAvgPool: x.mean(axis=(1, 2)).
ModuleList ModuleDict ParameterList ParameterDict: a plain list or dict in an attribute.
ReLU GELU SiLU ELU LeakyReLU Tanh Sigmoid Softmax LogSoftmax Softplus: nnx.relu, …, a function.
Flatten: x.reshape(len(x), -1).
functional: functions are in nnx itself (nnx.relu, nnx.softmax), losses in optax.
MSELoss L1Loss CrossEntropyLoss NLLLoss BCEWithLogitsLoss: a function of optax, such as \
optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean().
Parameter: nnx.Param(array).
Embedding: nnx.Embed(rows, features, rngs=rngs).
MultiheadAttention: nnx.MultiHeadAttention(heads, features, rngs=rngs).
LSTM GRU: nnx.RNN(nnx.LSTMCell(…)), nnx.RNN(nnx.GRUCell(…)).
no_grad enable_grad: nothing, without nnx.grad there is no gradient.
manual_seed: nnx.Rngs(seed), which the model is given.
init: nnx.initializers, given to a layer as kernel_init=….
""")
ARGUMENTS = _table("""
bias: use_bias
affine elementwise_affine: use_bias and use_scale
eps: epsilon
in_channels: in_features
out_channels: out_features
embedding_dim: features
stride: strides
dilation: kernel_dilation
groups: feature_group_count
padding_mode: padding
p: rate
""")


def tell(cls: type, table: dict[str, str]) -> None:
    """Let objects of a class say these cures; where they have an attribute of the name, it wins."""
    for name, cure in table.items():
        setattr(cls, name, _Missing(name, cure))


def there(obj: Any, names: Iterable[str]) -> list[str]:
    """Those of the names that an object has, and is not only asked for."""
    told = {n for base in type(obj).__mro__ for n, x in vars(base).items() if type(x) is _Missing}
    return [name for name in names if name not in told or hasattr(obj, name)]


class _Missing:
    """In the place of an attribute that a class does not have: who reads it is told the cure."""

    def __init__(self, name: str, cure: str):
        self.name, self.cure = name, cure

    def __get__(self, obj: Any, owner: type) -> Any:
        mro = owner.__mro__
        at = next(i for i, base in enumerate(mro) if vars(base).get(self.name) is self)
        for base in mro[at + 1 :]:  # a later base may have it
            found = vars(base).get(self.name, self)
            if type(found) is not _Missing:
                return found.__get__(obj, owner) if hasattr(found, "__get__") else found
        raise AttributeError(_text(f"{owner.__name__!r} object", self.name, self.cure))


def _text(of: str, name: str, cure: str) -> str:
    return f"{of} has no attribute {name!r}, which is PyTorch's.\nCure: {cure}"


def of_public(name: str) -> str:
    """What is written in the place of a public name of PyTorch; nothing if it is none."""
    return PUBLIC.get(re.sub("[123]d$", "", name), "")


def renamed(given: Iterable[str], names: Collection[str]) -> str:
    """What to say of arguments that have PyTorch's names; nothing if none has."""
    wrong = [
        x for x in given if x not in names and set(ARGUMENTS.get(x, "?").split(" and ")) <= {*names}
    ]
    here = ", ".join(f"{ARGUMENTS[x]} in the place of {x}" for x in wrong)
    return here and f"PyTorch's {', '.join(wrong)} is no argument here.\nCure: {here}."


def no_metadata(variable: Any, name: str) -> AttributeError:
    """The error about a name that neither a Variable nor its value has."""
    known = ", ".join(variable.get_metadata()) or "none"
    default = "give metadata when the Variable is made, nnx.Param(value, name=...)."
    return AttributeError(
        f"{type(variable).__name__} has no attribute or metadata {name!r} (metadata: {known}), nor "
        f"has its value, a {type(variable.raw_value).__name__}.\n"
        f"Cure: {OF_AN_ARRAY.get(name, default)}"
    )


def warn_of_metadata(name: str) -> None:
    """Of metadata that is set by a name under which PyTorch would have done something."""
    warnings.warn(
        f"`{name}` becomes metadata of the Variable, and does nothing by itself.\n"
        f"Cure: {OF_AN_ARRAY[name]}",
        UserWarning,
        stacklevel=3,
    )
