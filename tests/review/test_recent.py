"""What the server of the review page keeps in memory."""

import pytest
from small_review import serve_folders, write_volumes

from nnunetv2_deferral.review import study
from nnunetv2_deferral.review.recent import RecentlyUsed


def test_values_that_were_used_last_are_kept_as_many_as_fit():
    made = []
    recent = RecentlyUsed(lambda name: made.append(name) or name, len, most_bytes=4, at_least=1)
    for name in ("aa", "bb", "aa", "cc", "aa", "bb"):
        assert recent(name) == name
    assert made == ["aa", "bb", "cc", "bb"]


def test_a_few_values_are_kept_whatever_their_size():
    made = []
    recent = RecentlyUsed(lambda name: made.append(name) or name, len, most_bytes=1, at_least=2)
    for name in ("large", "larger", "large", "largest", "large", "larger"):
        recent(name)
    assert made == ["large", "larger", "largest", "larger"]


def test_a_value_is_added_only_where_none_has_to_go_for_it():
    made = []
    recent = RecentlyUsed(lambda name: made.append(name) or name, len, most_bytes=4, at_least=1)
    for name in ("aa", "bb", "cc", "aa"):
        recent.add(name, name)
    assert (recent("aa"), recent("bb"), made) == ("aa", "bb", [])
    recent("cc")
    assert made == ["cc"]


@pytest.mark.parametrize(("most_bytes", "again"), [(2**30, []), (1, ["case_a"])])
def test_a_case_that_was_read_for_the_list_is_not_read_again_while_there_is_memory(
    tmp_path, monkeypatch, most_bytes, again
):
    monkeypatch.setattr(study, "KEPT_BYTES", most_bytes)
    served = serve_folders(write_volumes(tmp_path))
    try:
        read, reading = [], served.review.study.predictions.case
        monkeypatch.setattr(type(served.review.study.predictions), "case", lambda _, n: read.append(n) or reading(n))
        ann = served.browser("ann")
        assert ann.get("/api/cases/case_a").status_code == 200
        assert ann.save("case_a", 0).status_code == 200
        assert read == again
    finally:
        served.review.store.close()
