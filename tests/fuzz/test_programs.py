"""Random programs do the same through refax's transforms as in plain Python: tests/programs.py."""

import os
import random
import signal

import jax
import pytest
from hypothesis import HealthCheck, given, note, settings

from refax import nnx
from tests import programs
from tests import strategies as graphs
from tests.programs import World
from tests.transforms.changes import tracers_in

COUNT = int(os.environ.get("REFAX_FUZZ", "300"))
relaxed = settings(
    max_examples=COUNT,
    derandomize="REFAX_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
    deadline=None,
)


@pytest.fixture(autouse=True)
def check_plans():
    """A plan that is used is compared with a new walk."""
    before = nnx.check_plans(True)
    yield
    nnx.check_plans(before)


@relaxed
@given(seed=programs.seeds, program=programs.programs())
def test_programs_do_what_plain_python_does(seed, program):
    ours, theirs = World(seed), World(seed)
    for number, statement in enumerate(program):
        note(str(statement))
        outcomes = []
        for world, do in ((ours, programs.run), (theirs, programs.run_naively)):
            try:
                do(world, statement)
                outcomes.append("done")
            except Exception as error:
                outcomes.append(type(error).__name__)
        found = graphs.difference(ours.everything(), theirs.everything())
        assert found == "", f"statement {number}: {found}"
        assert outcomes[0] == outcomes[1], f"statement {number}: {outcomes}"
        assert tracers_in(ours.everything()) == []


class Alarm(Exception):
    pass


# The signal may come while a weakref's callback runs, where Python can only report the exception.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@settings(relaxed, max_examples=max(COUNT // 10, 1))
@given(seed=programs.seeds, change=graphs.changes_of(["new value", "metadata", "append"]))
def test_a_signal_leaves_all_or_nothing(seed, change):
    """A compiled call that a signal handler interrupts somewhere has happened, or it has not."""
    worlds = [World(seed) for _ in range(3)]
    train = programs.Statement("verb", name="train")

    def step(objects):
        graphs.apply(objects["root"], change)
        programs.do_verb(None, objects, train)

    jitted = nnx.jit(step)
    for world in worlds:
        jitted(world.objects())
    ours, before, after = worlds
    jitted(after.objects())

    def ring(*_):
        raise Alarm

    old = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, random.Random(seed).uniform(1e-6, 1e-3))
        try:
            jitted(ours.objects())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Alarm:
        pass
    finally:
        signal.signal(signal.SIGALRM, old)
    differences = [graphs.difference(ours.everything(), x.everything()) for x in (before, after)]
    assert "" in differences, differences
    jax.block_until_ready(jax.tree.leaves(nnx.state(ours.net)))
