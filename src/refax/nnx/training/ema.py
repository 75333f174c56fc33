"""`nnx.training.ema`: names only."""

from ...objects.type_names import A as A
from ...training.ema import EMA as EMA
