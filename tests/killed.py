"""A process that ends while it moves files to their places."""

from pathlib import Path


def killed_after(number, monkeypatch):
    """Let the process end when it would move a file after that many; `monkeypatch.undo()` starts it anew."""
    moved, replace = [], Path.replace

    def move(self, target):
        if len(moved) == number:
            raise KeyboardInterrupt
        moved.append(target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", move)
