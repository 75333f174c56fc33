"""`nnx.object`: what `nnx.pytreelib` is called in older programs."""

from .pytreelib import *
