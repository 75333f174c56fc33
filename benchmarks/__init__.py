"""refax beside hand-written JAX, Flax and Equinox: `python -m benchmarks`, see README.md."""
