"""Waiting for what another process or thread does, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

LONGEST_S = 300.0


def wait_for(condition: Callable[[], object], *, alive: Callable[[], object] | None = None) -> None:
    """Wait until `condition` holds; fail after five minutes, or at once if `alive` does not hold any more."""
    late = time.monotonic() + LONGEST_S
    while not condition():
        if alive is not None and not alive():
            if condition():
                return
            pytest.fail("what was waited for has ended before it happened")
        if time.monotonic() > late:
            pytest.fail(f"waited for {LONGEST_S:.0f} s in vain")
        time.sleep(0.05)
