"""Tables of the page docs/results/surfaces.md."""

from __future__ import annotations

from result_tables.shared import markdown_table, percent, read_json, small_print


def surfaces() -> str:
    """Dice and surfaces of model and system, by the errors of simulated experts."""
    names = {
        "independent": "independent errors",
        "correlated": "errors in patches",
        "boundary_bias": "borders too wide or tight",
        "missed_components": "missed components",
    }
    rows, notes = [], []
    for name, dataset in (("501_2d", "501, 2D"), ("004_3d_fullres", "004, 3D")):
        content = read_json(f"surfaces_{name}.json")
        for error_model, of in content["found"].items():
            pairs = (
                f"{of['model_everywhere'][score]:{form}} → {of['system'][score]:{form}}"
                for score, form in (("Dice", ".3f"), ("HD95", ".1f"), ("NSD", ".3f"))
            )
            rows.append((dataset, names[error_model], percent(of["rate"]), *pairs))
        cases, unit = (content["found"]["independent"][key] for key in ("cases", "unit"))
        notes.append(f"{dataset}: {cases} cases, in {unit}, {content['machine']}, {content['date']}")
    header = ("dataset", "experts", "deferred", "Dice", "HD95", "NSD, tolerance 1")
    return markdown_table(header, rows) + f"\n\n{small_print('; '.join(notes))}"


TABLES = (surfaces,)
