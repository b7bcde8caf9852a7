"""Plans that differ from others in the `"deferral"` block alone, under names of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import read_json, write_json
from nnunetv2_deferral.settings import PLANS_KEY, resolve_settings
from nnunetv2_deferral.text import differences

# All that a block says about who the experts are, one by one.
_OF_EXPERTS = ("experts", "num_experts", "lower", "upper", "costs", "unavailable")


@dataclass(frozen=True, kw_only=True)
class PlansChange:
    """How a deferral block is changed.

    Attributes:
        suffix: What the name of the derived plans ends with.
        settings: The keys that get a value.
        other_experts: Take out everything that the block says about its experts first.
    """

    suffix: str
    settings: Mapping[str, Any]
    other_experts: bool = False

    def apply(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """The changed block."""
        dropped = _OF_EXPERTS if self.other_experts else ()
        return {key: value for key, value in block.items() if key not in dropped} | dict(self.settings)


def use_expert_set(name: str) -> PlansChange:
    """A named set of simulated experts, of the number that the trainer says."""
    return PlansChange(suffix=name, settings={"experts": name}, other_experts=True)


def use_weights(coherence: float, balance: float) -> PlansChange:
    """Other weights of the losses, lambda_1 and lambda_2."""
    settings = {"lambda_coherence": float(coherence), "lambda_balance": float(balance)}
    return PlansChange(suffix=f"l1_{coherence:g}_l2_{balance:g}", settings=settings)


def plans_with(
    change: PlansChange, folder: Path, base: str, *, num_experts: int | None, raters: Sequence[str], write: bool
) -> str:
    """The name of plans with a change.

    That is the base itself where the change makes no difference to a trainer of that number of experts, so that nothing
    is trained twice; else `<base>_<suffix>`, on the same preprocessed data.

    Args:
        change: The change.
        folder: The preprocessed dataset.
        base: Name of the plans to start from.
        num_experts: J as the trainer's name fixes it.
        raters: The raters that the dataset declares.
        write: Write derived plans that are not there yet.

    Raises:
        InputError: If the base cannot be read, the change makes no valid settings, or plans of the derived name differ
            from those that would be written.
    """
    plans = read_json(folder / f"{base}.json")
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
        if differing := differences(read_json(file), derived):
            raise InputError(
                f"{file} is not {base} with {change.suffix}: {'; '.join(differing)}. Remove or rename it, if it is not "
                "needed any more"
            )
    elif write:
        write_json(derived, file)
    return name
