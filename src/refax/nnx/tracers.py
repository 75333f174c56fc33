"""`nnx.tracers`: which trace runs."""

from ..objects.trace_state import TraceState as TraceState, current_jax_trace as current_jax_trace
