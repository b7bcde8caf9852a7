"""What a JSON file must be, and how its faults are told."""

import json

import pytest
from typing_extensions import NotRequired, TypedDict

from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.schema import Boolean, Count, Share, Text, read_validated_json, validate


class Entry(TypedDict):
    rate: Share
    names: list[Text]


class Content(TypedDict):
    entries: dict[Text, Entry]
    labels: NotRequired[dict[Text, Count | list[Count]]]
    on: NotRequired[Boolean]


WHOLE = {"entries": {"x": {"rate": 1, "names": ["ann"]}}, "labels": {"a": 1, "b": [1, 2]}, "on": True, "other": None}


def test_a_content_of_the_right_types_passes_whatever_else_it_has():
    validate(WHOLE, Content, "a.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entries": {"x": {"rate": float("nan"), "names": []}}}, "entries.x.rate must be a finite number, got nan"),
        ({"entries": {"x": {"names": [1]}}}, "entries.x.rate is missing; entries.x.names[0] must be a string, got 1"),
        ({"entries": []}, "entries must be an object, got []"),
        ({"labels": {"a": "1"}}, "labels.a must be an integer, got '1'"),
        ({"labels": {"a": True}}, "labels.a must be an integer, got True"),
        ({"labels": {"b": [1, -2]}}, "labels.b[1] must be greater than or equal to 0, got -2"),
        ({"labels": {"a": {"b": 1}}}, "labels.a must be an integer, got {'b': 1}"),
        ({"on": "false"}, "on must be a boolean, got 'false'"),
        (
            {"entries": {"x": {"rate": 10**5000, "names": []}}},
            "entries.x.rate must be a number, got a very large number",
        ),
        ({"entries": {str(n): {} for n in range(9)}}, "; and 13 more"),
    ],
)
def test_a_fault_is_told_by_key_and_value(change, message):
    with pytest.raises(InputError) as refused:
        validate(WHOLE | change, Content, "a.json")
    assert str(refused.value).startswith("a.json: ")
    assert message in str(refused.value)


def test_a_long_value_is_abbreviated():
    with pytest.raises(InputError) as refused:
        validate({"entries": "x" * 10**6}, Content, "a.json")
    assert len(str(refused.value)) < 200


def test_a_file_is_named(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(WHOLE))
    assert read_validated_json(file, Content) == WHOLE
    file.write_text('{"entries": NaN}')
    with pytest.raises(InputError) as refused:
        read_validated_json(file, Content)
    assert str(refused.value) == f"{file}: entries must be an object, got nan"
