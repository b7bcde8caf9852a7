"""The values that were used last, kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

Value = TypeVar("Value")


class RecentlyUsed(Generic[Value]):
    """The values of a function of a name that were used last, as many as fit into memory. Thread-safe."""

    def __init__(
        self, make: Callable[[str], Value], size: Callable[[Value], int], *, most_bytes: int, at_least: int
    ) -> None:
        """Start without values.

        Args:
            make: Makes the value of a name.
            size: The size of a value in bytes.
            most_bytes: The values that were used last are kept up to this size in all.
            at_least: So many are kept whatever their size.
        """
        self._make, self._size = make, size
        self._most_bytes, self._at_least = most_bytes, at_least
        self._values: OrderedDict[str, Value] = OrderedDict()  # the one that was used last comes last
        self._bytes = 0
        self._lock = Lock()

    def __call__(self, name: str) -> Value:
        """The value of a name; if it is not kept, it is made."""
        with self._lock:
            if name in self._values:
                self._values.move_to_end(name)
                return self._values[name]
        value = self._make(name)
        with self._lock:
            self._keep(name, value)
            while self._bytes > self._most_bytes and len(self._values) > self._at_least:
                _, oldest = self._values.popitem(last=False)
                self._bytes -= self._size(oldest)
        return value

    def add(self, name: str, value: Value) -> None:
        """Keep a value that was made elsewhere, unless another one would have to go for it."""
        with self._lock:
            if name not in self._values and self._bytes + self._size(value) <= self._most_bytes:
                self._keep(name, value)

    def _keep(self, name: str, value: Value) -> None:
        if name in self._values:  # made by two threads at once
            self._bytes -= self._size(self._values.pop(name))
        self._values[name] = value
        self._bytes += self._size(value)
