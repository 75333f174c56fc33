"""`nnx.nn`: the layers, by subject."""

from . import (
    activations as activations, attention as attention, dtypes as dtypes,
    initializers as initializers, linear as linear, lora as lora, normalization as normalization,
    recurrent as recurrent, stochastic as stochastic)
