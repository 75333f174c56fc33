"""Where the threads that write a checkpoint wait for those of other processes.

orbax lets them meet at several places, one after the other. A thread that has an error leaves some
of them out and goes to the last; by orbax's own means the others would wait for it for 20 minutes.
Here each writes down where it comes, so that it is seen when one has gone past.
"""

from __future__ import annotations

import itertools
import sys
import time

import jax

from .._jax_compat import messages

_PAUSE = 0.02  # seconds
_NUMBERS = itertools.count()  # of the `Meetings`, which all processes make in the same order


class Meetings:
    """Takes the place of orbax's `barrier_sync_fn`."""

    def __init__(self):
        self._number = next(_NUMBERS)
        self._save, self._own = 0, list[str]()

    def begin(self) -> None:
        """A new save; of the one before all threads have ended, in all processes."""
        if jax.process_count() > 1:
            if jax.process_index() == 0:
                messages().key_value_delete(self._folder)
            self._save, self._own = self._save + 1, []

    @property
    def _folder(self) -> str:
        return f"refax/checkpoints/{self._number}/{self._save}/"

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Wait until all processes have come to the place `key` as often as this one.

        Raises:
            RuntimeError: another one will not come.
            TimeoutError: another one did not come in time.
        """
        if jax.process_count() == 1:
            return
        self._own.append(key)
        me, number = jax.process_index(), len(self._own)
        messages().key_value_set(f"{self._folder}{me}/{number:06}", key)
        end = time.monotonic() + timeout_ms / 1000
        while time.monotonic() < end:
            came: list[list[str]] = [[] for _ in range(jax.process_count())]
            for path, place in sorted(messages().key_value_dir_get(self._folder)):
                came[int(path.split("/")[-2])].append(place)
            late = [i for i, places in enumerate(came) if places.count(key) < self._own.count(key)]
            if not late:
                return
            for i in late:
                last = came[i][-1] if came[i] else key
                if came[i].count(last) > self._own.count(last):  # where this one never was
                    if sys.exc_info()[0] is not None:  # this one is on its way out itself
                        return
                    raise RuntimeError(f"process {i} could not write its part; it says why")
            time.sleep(_PAUSE)
        raise TimeoutError(f"process {late[0]} did not come to {key!r} in time")
