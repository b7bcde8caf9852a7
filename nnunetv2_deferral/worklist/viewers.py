"""A worklist in the formats of desktop programs: markups of 3D Slicer and a task list of MITK.

viewers/slicer/<expert>/<case>.mrk.json    a point in each region, labelled with its rank
viewers/mitk_tasks.json                    a task for each case and expert, in the order of their first regions
viewers/mitk_labels.json                   names of labels that MITK suggests
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "viewers"
TASKS_NAME, LABELS_NAME = "mitk_tasks.json", "mitk_labels.json"
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of MITK; paths are absolute or relative to the task list.

    Attributes:
        name: Its name.
        description: What is to be done.
        image: The image, or a file of its DICOM series.
        result: Where MITK writes the segmentation.
        segmentation: The segmentation to begin with; None for an empty one.
    """

    name: str
    description: str
    image: str
    result: str
    segmentation: str | None = None


def write_viewers(
    rows: Sequence[Mapping[str, Any]], images: Mapping[str, Path], labels: Sequence[str], to: Path
) -> None:
    """Write all of these files.

    Args:
        rows: The regions of a worklist in its order, with lengths in mm, see :func:`.to_row`.
        images: The image of each case.
        labels: The names of the foreground labels.
        to: The folder, which is created.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["expert"]), []).append(row)
    for (case, expert), group in groups.items():
        _write(slicer_markups(f"{case}: ask {expert}", group), to / "slicer" / expert / f"{case}.mrk.json")
    tasks = [
        Task(
            name=task_name(case, expert, [row["rank"] for row in group]),
            description="\n".join(map(_line, group)),
            image=str(images[case].resolve()),
            result=f"results/{expert}/{case}.nrrd",
        )
        for (case, expert), group in groups.items()
    ]
    _write(mitk_task_list(tasks, suggestions=LABELS_NAME), to / TASKS_NAME)
    _write([{"name": name} for name in labels], to / LABELS_NAME)


def slicer_markups(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A list of points for 3D Slicer (.mrk.json), in LPS like the worklist.

    Args:
        name: The name of the list.
        rows: The regions, see :func:`.to_row`; a point is the central voxel, its label the rank.
    """
    points = [
        {
            "id": str(row["rank"]),
            "label": str(row["rank"]),
            "description": f"ask {row['expert']}: {row['why']}",
            "position": list(row["centre_world"]),
            "positionStatus": "defined",
            "locked": True,
        }
        for row in rows
    ]
    markup = {
        "type": "Fiducial",
        "name": name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "controlPoints": points,
    }
    return {"@schema": _SCHEMA, "markups": [markup]}


def mitk_task_list(tasks: Sequence[Task], *, suggestions: str | None = None) -> dict[str, Any]:
    """An MITK Segmentation Task List.

    Args:
        tasks: The tasks in their order.
        suggestions: A file with names for new labels; None for none.
    """
    content: dict[str, Any] = {"FileFormat": "MITK Segmentation Task List", "Version": 1, "Name": "Deferred regions"}
    if suggestions is not None:
        content["Defaults"] = {"LabelNameSuggestions": suggestions}
    content["Tasks"] = [
        {"Name": task.name, "Description": task.description, "Image": task.image}
        | ({} if task.segmentation is None else {"Segmentation": task.segmentation})
        | {"Result": task.result}
        for task in tasks
    ]
    return content


def task_name(case: str, expert: str, ranks: Sequence[int]) -> str:
    """The name of the task of an expert about a case."""
    return f"{case}: {expert}, {len(ranks)} regions from rank {min(ranks)}"


def _line(row: Mapping[str, Any]) -> str:
    place = ", ".join(f"{value:.1f}" for value in row["centre_world"])
    return f"{row['rank']}. at {place} mm (LPS): {row['why']}"


def _write(content: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
