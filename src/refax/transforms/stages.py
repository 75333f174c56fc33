"""The stages of a jitted function, lowered and compiled, which take and give objects as it does."""

from __future__ import annotations

import re
from typing import Any

import jax
from jax.tree_util import keystr, tree_leaves_with_path

from ..graph.graphdef import GraphDef
from ..lift.call import leave
from ..lift.faults import execute
from ..lift.places import outputs_of


class _Stage:
    """A stage of `jax.stages`, and the wrapper that it comes from."""

    def __init__(self, wrapped: Any, stage: Any):
        self._wrapped = wrapped
        self._stage = stage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)


class Lowered(_Stage):
    """A lowered program: `jax.stages.Lowered`, but `compile()` gives a function of objects."""

    def __init__(self, wrapped: Any, stage: Any, graphdef: GraphDef, occurring: Any):
        super().__init__(wrapped, stage)
        self._outputs = graphdef, occurring

    def as_text(self, *args: Any, **kwargs: Any) -> str:
        """The program as text, with the paths of what it writes in the places of numbers."""
        text, out = self._stage.as_text(*args, **kwargs), self._stage.out_info
        paths = [f"result{keystr(path)}" for path, _ in tree_leaves_with_path(out)]
        places = dict(zip(paths, outputs_of(*self._outputs, out), strict=True))
        name = r'(?<=jax\.result_info = ")result[^"]*'
        return re.sub(name, lambda found: places.get(found[0], found)[0], text)

    def compile(self, *args: Any, **kwargs: Any) -> Compiled:
        return Compiled(self._wrapped, self._stage.compile(*args, **kwargs))


class Compiled(_Stage):
    """A compiled program: `jax.stages.Compiled`, called with objects."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call, _, inputs = self._wrapped._prepare(args, kwargs)
        return leave(call, execute(call, self._wrapped._function, self._stage, *inputs))

    def rehearse(self, *args: Any, **kwargs: Any) -> Any:
        """Run on copies of the arguments; the objects stay as they are."""
        _, _, inputs = self._wrapped._prepare(args, kwargs)
        copies = jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, inputs)
        return self._stage(*copies)
