"""Tables of the page docs/results/evidence.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from result_tables.shared import BUDGETS, NONE, markdown_table, percent, percents, read_json, small_print

_EVIDENCE = {
    "standard": "Table 2, independent",
    "correlated": "errors in patches",
    "boundary_bias": "borders too wide or tight",
    "missed_components": "missed components",
    "complementary": "complementary",
    "readers": "four readers, reference at least 2 of them",
    "leave_one_out": "one reader, reference the other three",
}
_GOALS = (
    ("standard", "R1 k1", 0.01, 0.80),
    ("standard", "R2 k2", 0.01, 0.86),
    ("standard", "R4 k3", 0.01, 0.90),
    ("correlated", "R1 k1", 0.01, 0.78),
    ("complementary", "R1 k1", 0.01, 0.80),
    ("complementary", "R2 k2", 0.01, 0.84),
    ("boundary_bias", "R1 k1", 0.01, 0.66),
    ("boundary_bias", "R2 k2", 0.01, 0.72),
    ("missed_components", "R1 k1", 0.01, 0.35),
    ("missed_components", "R2 k2", 0.01, 0.55),
    ("readers", "R2 k2", 0.01, 0.40),
    ("readers", "R4 k4", 0.01, 0.60),
    ("readers", "R4 k4", 0.02, 0.75),
)
_FEATURES = {
    "standard": "the model's probabilities",
    "heads": "and those of the heads",
    "aggregated": "and the aggregated predictor's",
    "heads-aggregated": "and both",
}
_POLICIES = ("rule", "confidence", "confidence, evidence", "R1 k1", "R2 k2", "R4 k2", "R4 k3", "R4 k4")


def evidence() -> str:
    """Answers as evidence at 0.5, 1 and 2 %, by kind of experts and policy."""
    return _evidence("501_2d", _EVIDENCE, BUDGETS[:3])


def evidence_3d() -> str:
    """The same for two classes in 3D, whose errors are a larger share of the voxels."""
    return _evidence("004_3d_fullres", ("standard", "correlated", "missed_components"), BUDGETS[1:4])


def evidence_readers_3d() -> str:
    """The same for volumes that four people read."""
    return _evidence("505_3d_fullres", ("readers",), BUDGETS[1:4])


def evidence_vessels() -> str:
    """The same for retinal vessels, which two observers outlined."""
    names = _EVIDENCE | {"leave_one_out": "one observer, reference the other"}
    return _evidence("502_2d", ("standard", "leave_one_out"), BUDGETS[1:4], names)


def evidence_goals() -> str:
    """What was aimed at before it was measured, and what was found."""
    rows = []
    for kind, policy, budget, goal in _GOALS:
        each = read_json(f"evidence_501_2d_{kind}.json")["policies"][policy]
        (found,) = (row["recovered"] for row in each if row["budget"] == budget)
        rows.append((_EVIDENCE[kind], policy, *percents([budget]), f"{goal:.2f}", f"{found:.2f}"))
    return markdown_table(("experts", "policy", "budget", "goal", "recovered"), rows)


def evidence_features() -> str:
    """What a prior gains from what the deferral head says."""
    rows, sources = [], set()
    for policy in ("R1 k1", "R2 k2", "R4 k3"):
        for key, name in _FEATURES.items():
            content = read_json(f"evidence_501_2d_{key}.json")
            sources.add(f"{content['groups']} patients, {content['machine']}, {content['date']}")
            found = {row["budget"]: row for row in content["policies"][policy]}
            rows.append((policy, name, *(_evidence_cell(found[budget]) for budget in BUDGETS[:3])))
    table = markdown_table(("policy", "the prior knows", *percents(BUDGETS[:3])), rows)
    return f"{table}\n\n{small_print('; '.join(sorted(sources)))}"


def errors_deferred() -> str:
    """The share of the model's errors in the voxels that are deferred first."""
    content = read_json("errors_deferred_502_2d.json")
    rows = [
        (
            row["score"],
            row["part"],
            *(
                "{:.0f} [{:.0f}, {:.0f}] %".format(*(100 * each[key] for key in ("estimate", "low", "high")))
                for each in row["shares"]
            ),
        )
        for row in content["gone"]
    ]
    note = (
        f"Model: Dice {content['foreground_dice']:.3f}, {percent(content['wrong'])} of the pixels wrong. "
        f"{content['cases']} images, {content['groups']} patients, {content['machine']}, {content['date']}"
    )
    return markdown_table(("score", "pixels", *percents(content["budgets"])), rows) + f"\n\n{small_print(note)}"


def _evidence(of: str, kinds: Iterable[str], budgets: Sequence[float], names: Mapping[str, str] = _EVIDENCE) -> str:
    rows, sources = [], set()
    for key in kinds:
        name, content = names[key], read_json(f"evidence_{of}_{key}.json")
        sources.add(f"{content['groups']} patients, {content['machine']}, {content['date']}")
        for policy in _POLICIES:
            found = {row["budget"]: row for row in content["policies"].get(policy, ())}
            if found:
                rows.append((name, policy, *(_evidence_cell(found[budget]) for budget in budgets)))
    header = ("experts", "policy", *percents(budgets))
    return markdown_table(header, rows) + f"\n\n{small_print('; '.join(sorted(sources)))}"


def _evidence_cell(row: Mapping[str, Any]) -> str:
    part = NONE if row["recovered"] is None else f"{row['recovered']:.2f}"
    return f"{row['Dice']['estimate']:.3f} ({part}) {percent(row['questions'])}"


TABLES = (
    evidence,
    evidence_goals,
    evidence_features,
    evidence_3d,
    evidence_readers_3d,
    evidence_vessels,
    errors_deferred,
)
