"""The three folders of nnU-Net, which every workplace of the tests has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class NnunetFolders:
    """nnU-Net's folders below one root.

    Attributes:
        root: What they lie in.
        dataset: The name of the one dataset that all is about, if there is one: `raw` and the others are then its.
    """

    root: Path
    dataset: str = ""

    @property
    def raw(self) -> Path:
        return self.root / "raw" / self.dataset

    @property
    def preprocessed(self) -> Path:
        return self.root / "preprocessed" / self.dataset

    @property
    def results(self) -> Path:
        return self.root / "results" / self.dataset

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that lead nnU-Net here."""
        return {f"nnUNet_{name}": str(self.root / name) for name in ("raw", "preprocessed", "results")}

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Make the folders, and have this process use them."""
        for name, folder in self.variables.items():
            Path(folder).mkdir(parents=True, exist_ok=True)
            patch.setenv(name, folder)
