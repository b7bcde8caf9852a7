"""Derived plans, which differ from others in their name and the `"deferral"` block only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_deferral.dataset import read_plans_json
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import write_json
from nnunetv2_deferral.settings import PLANS_KEY, resolve_settings
from nnunetv2_deferral.text import differences

# The settings that depend on the experts.
_OF_EXPERTS = ("experts", "num_experts", "lower", "upper", "costs", "unavailable", "multi_rater")


@dataclass(frozen=True, kw_only=True)
class PlansChange:
    """A change to a deferral block.

    Attributes:
        suffix: Suffix of the derived plans' name.
        settings: The settings to replace.
        other_experts: Remove all settings that depend on the experts first.
    """

    suffix: str
    settings: Mapping[str, Any]
    other_experts: bool = False

    def apply(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """The changed block."""
        dropped = _OF_EXPERTS if self.other_experts else ()
        return {key: value for key, value in block.items() if key not in dropped} | dict(self.settings)


def use_expert_set(name: str) -> PlansChange:
    """Use a named set of simulated experts, as many as the trainer's name states."""
    return PlansChange(suffix=name, settings={"experts": name}, other_experts=True)


def use_weights(coherence: float, balance: float) -> PlansChange:
    """Use other weights of the losses, lambda_1 and lambda_2."""
    settings = {"lambda_coherence": float(coherence), "lambda_balance": float(balance)}
    return PlansChange(suffix=f"l1_{coherence:g}_l2_{balance:g}", settings=settings)


def plans_with(
    change: PlansChange, folder: Path, base: str, *, num_experts: int | None, raters: Sequence[str], write: bool
) -> str:
    """Derive plans with a change and return their name.

    This is the base's name if the change has no effect for a trainer of that number of experts, so that nothing is
    trained twice; else `<base>_<suffix>`, with the same preprocessed data.

    Args:
        change: The change.
        folder: The preprocessed dataset.
        base: Name of the plans to start from.
        num_experts: The number J of experts as fixed by the trainer's name.
        raters: The raters declared in the dataset.
        write: Write derived plans that do not exist yet.

    Raises:
        InputError: If the base cannot be read, the changed settings are invalid, or existing plans of the derived name
            differ from those that would be written.
    """
    plans = read_plans_json(folder / f"{base}.json")
    block = plans.get(PLANS_KEY) or {}
    changed = change.apply(block)
    wanted = resolve_settings(changed, num_experts=num_experts, raters=raters)
    try:
        if resolve_settings(block, num_experts=num_experts, raters=raters) == wanted:
            return base
    except InputError:
        pass  # the base is for other experts
    name = f"{base}_{change.suffix}"
    derived = plans | {"plans_name": name, PLANS_KEY: changed}
    file = folder / f"{name}.json"
    if file.is_file():
        if differing := differences(read_plans_json(file), derived):
            raise InputError(
                f"{file} differs from {base} with {change.suffix}: {'; '.join(differing)}. Remove or rename it if it "
                "is no longer needed"
            )
    elif write:
        write_json(derived, file)
    return name
