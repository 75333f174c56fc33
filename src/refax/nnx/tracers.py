"""`nnx.tracers`: which trace runs."""

from ..objects.extras import TraceState as TraceState, current_jax_trace as current_jax_trace
