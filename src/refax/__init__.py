"""refax: neural networks in JAX with Python reference semantics. See `refax.nnx`."""

__version__ = "0.2.0"
