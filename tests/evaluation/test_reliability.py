import json

import numpy as np
import pytest
from scipy.special import expit, logit

from nnunetv2_deferral.cases import EvaluatedCase, PredictedCase
from nnunetv2_deferral.decision.calibrators import IDENTITY, Isotonic, Temperature
from nnunetv2_deferral.evaluation.evaluation import Evaluation
from nnunetv2_deferral.evaluation.reliability import LEAST_CERTAIN, ReliabilityStatistics
from nnunetv2_deferral.labels import MISSING

NAMES = ("model", "ann", "bob")


def draws(seed, number=100_000, said=lambda truth: truth):
    """(3, number) probabilities and whether they were right, where a head of true logit `truth` says `said(truth)`."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(3, 1.5, (len(NAMES), number))
    return expit(said(truth)).astype(np.float32), generator.random(truth.shape) < expit(truth)


def gathered(*cases, heads=None, names=NAMES):
    """The summary of cases (probabilities, right, known or None, route or None)."""
    statistics = ReliabilityStatistics(names, heads)
    for number, (said, right, known, route) in enumerate(cases):
        statistics.update(
            f"case_{number}",
            said,
            right,
            np.ones(right.shape, bool) if known is None else known,
            np.zeros(right.shape[1:], np.uint8) if route is None else route,
        )
    return statistics.summary()


def exactly(probability, share, number=1000):
    """`number` voxels (number,) that say `probability`, of which this share is right."""
    return np.full(number, probability, np.float32), np.arange(number) < round(share * number)


def stacked(*heads):
    return tuple(np.stack(each) for each in zip(*heads, strict=True))


def test_heads_that_mean_what_they_say_are_hardly_off_anywhere():
    heads = gathered((*draws(0), None, None))["heads"]
    assert list(heads) == list(NAMES)
    for head in heads.values():
        assert head["all"]["before"]["ece"] < 0.004
        assert abs(head["all"]["before"]["bias"]) < 0.003
        assert head["least_certain"]["before"]["ece"] < 0.07  # chance, with about 2000 voxels in 15 bins


def test_a_head_that_says_too_much_is_off_by_what_it_says_too_much():
    said, right = stacked(exactly(0.9, 0.9), exactly(0.95, 0.8), exactly(0.7, 0.8))
    heads = gathered((said, right, None, None))["heads"]
    found = {name: (head["all"]["before"]["ece"], head["all"]["before"]["bias"]) for name, head in heads.items()}
    assert found["model"] == pytest.approx((0, 0), abs=1e-6)
    assert found["ann"] == pytest.approx((0.15, 0.15), abs=1e-6)
    assert found["bob"] == pytest.approx((0.1, -0.1), abs=1e-6)
    assert heads["ann"]["all"]["before"]["voxels"] == [1000]
    assert heads["ann"]["all"]["before"]["right"] == [0.8]


def test_a_calibration_shows_after_it_and_not_before():
    said, right = draws(1, said=lambda truth: 2 * truth)
    heads = gathered((said, right, None, None), heads=[Temperature(2.0), IDENTITY, Temperature(2.0)])["heads"]
    for name in ("model", "bob"):
        assert heads[name]["all"]["before"]["ece"] > 0.02
        assert heads[name]["all"]["after"]["ece"] < 0.004
        assert heads[name]["least_certain"]["after"]["ece"] < heads[name]["least_certain"]["before"]["ece"]
    assert heads["ann"]["all"]["after"] == heads["ann"]["all"]["before"]


def test_each_head_has_a_map_of_its_own():
    said, right = stacked(*[exactly(0.9, 0.5)] * 3)
    to = [Isotonic((0.0,), (share,)) for share in (0.1, 0.2, 0.3)]  # shifts of the logit
    heads = gathered((said, right, None, None), heads=to)["heads"]
    for name, share in zip(NAMES, (0.1, 0.2, 0.3), strict=True):
        expected = expit(logit(0.9) + logit(share))
        assert heads[name]["all"]["after"]["probability"] == pytest.approx([expected], abs=1e-6)


def test_identity_maps_change_nothing():
    summary = gathered((*draws(2, 10_000), None, None), heads=[IDENTITY] * 3)
    for head in summary["heads"].values():
        for part in head.values():
            assert part["after"] == part["before"]


def test_without_a_calibration_there_is_nothing_after_it():
    heads = gathered((*draws(2, 1000), None, None))["heads"]
    assert all(part["after"] is None for head in heads.values() for part in head.values())


def test_the_least_certain_are_those_where_the_model_gives_itself_least():
    # The model is unsure in 20 of 1000 voxels. Ann is wrong there and right elsewhere, and is herself sure everywhere.
    unsure = np.arange(1000) % 50 == 7
    said = np.stack([np.where(unsure, 0.6, 0.999), np.full(1000, 0.99), np.full(1000, 0.5)]).astype(np.float32)
    right = np.stack([~unsure, ~unsure, np.ones(1000, bool)])
    summary = gathered((said, right, None, None))
    assert summary["least_certain"]["share"] == LEAST_CERTAIN == 0.02
    assert 0.6 < summary["least_certain"]["below"] < 0.65
    for name, probability, share in (("model", 0.6, 0), ("ann", 0.99, 0), ("bob", 0.5, 1)):
        found = summary["heads"][name]["least_certain"]["before"]
        assert found["voxels"] == [20]
        assert found["probability"] == pytest.approx([probability], abs=1e-6)
        assert found["right"] == [share]
    assert sum(summary["heads"]["ann"]["all"]["before"]["voxels"]) == 1000


def test_whole_bins_are_taken_and_no_more_than_needed():
    # 1 % at 0.2, 3 % at 0.4, the rest at 0.9: two bins are needed, and the third is not.
    said = np.repeat([0.2, 0.4, 0.9], [10, 30, 960]).astype(np.float32)[None].repeat(3, 0)
    summary = gathered((said, np.ones(said.shape, bool), None, None))
    assert summary["least_certain"]["wanted"] == 0.02
    assert summary["least_certain"]["share"] == pytest.approx(0.04)
    assert sum(summary["heads"]["bob"]["least_certain"]["before"]["voxels"]) == 40


def test_the_least_certain_are_chosen_over_all_cases_together():
    sure, unsure = np.full((3, 980), 0.99, np.float32), np.full((3, 10), 0.6, np.float32)
    cases = [(each, np.ones(each.shape, bool), None, None) for each in (unsure, sure, unsure)]
    summary = gathered(*cases)
    assert summary["least_certain"]["share"] == 0.02
    assert sum(summary["heads"]["model"]["least_certain"]["before"]["voxels"]) == 20


def test_the_share_is_near_two_per_cent_for_probabilities_of_many_values():
    summary = gathered((*draws(3), None, None))
    share = summary["least_certain"]["share"]
    assert 0.02 <= share < 0.03
    assert sum(summary["heads"]["ann"]["least_certain"]["before"]["voxels"]) == round(share * 100_000)


def test_voxels_in_pieces_or_at_once_are_the_same(monkeypatch):
    said, right = draws(4, 5000)
    route = (np.arange(5000) % 3).astype(np.uint8)
    at_once = gathered((said, right, None, route))
    monkeypatch.setattr("nnunetv2_deferral.arrays.CHUNK_VOXELS", 37)
    in_pieces = gathered((said, right, None, route))
    as_volume = gathered((*(each.reshape(3, 5, 10, 100) for each in (said, right)), None, route.reshape(5, 10, 100)))
    for other in (in_pieces, as_volume):
        assert other["least_certain"] == at_once["least_certain"]
        assert other["gain"] == {key: pytest.approx(value) for key, value in at_once["gain"].items()}
        for name in NAMES:
            for part in ("all", "least_certain"):
                for key, value in at_once["heads"][name][part]["before"].items():
                    assert other["heads"][name][part]["before"][key] == pytest.approx(value), (name, part, key)


def test_what_was_not_predicted_counts_nowhere():
    said, right = stacked(exactly(0.9, 0.9, 100), exactly(0.95, 0.8, 100), exactly(0.7, 0.8, 100))
    route = np.ones(100, np.uint8)
    alone = gathered((said, right, None, route))
    nothing = np.full((3, 50), np.nan, np.float32)
    padded = gathered(
        (
            np.concatenate([said, nothing], axis=1),
            np.concatenate([right, np.ones((3, 50), bool)], axis=1),
            None,
            np.ones(150, np.uint8),
        )
    )
    assert padded == alone


def test_what_is_not_known_of_a_head_does_not_count_for_it():
    said, right = stacked(exactly(0.9, 0.9, 100), exactly(0.95, 0.8, 100), exactly(0.7, 0.8, 100))
    known = np.ones((3, 100), bool)
    known[1, :80] = False  # where ann is right
    heads = gathered((said, right, known, None))["heads"]
    assert [sum(heads[name]["all"]["before"]["voxels"]) for name in NAMES] == [100, 20, 100]
    assert heads["ann"]["all"]["before"]["right"] == [0]
    assert heads["bob"]["all"]["before"]["right"] == [0.8]


class TestGain:
    SAID = np.array(
        [[0.5, 0.6, 0.9, 0.4], [0.7, 0.9, 0.95, 0.5], [0.8, 0.7, 0.92, 0.9]], dtype=np.float32
    )  # model, ann, bob in four voxels
    RIGHT = np.array([[0, 0, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1]], dtype=bool)

    def test_promised_and_kept_are_means_over_the_deferred_voxels_of_the_expert_asked(self):
        gain = gathered((self.SAID, self.RIGHT, None, np.array([1, 2, 2, 0])))["gain"]
        assert gain["voxels"] == 3
        assert gain["promised"] == pytest.approx((0.2 + 0.1 + 0.02) / 3, abs=1e-6)
        assert gain["kept"] == pytest.approx((1 + 1 - 1) / 3)

    def test_promises_are_those_after_calibration(self):
        gain = gathered((self.SAID, self.RIGHT, None, np.array([0, 2, 0, 0])), heads=[Temperature(2.0)] * 3)["gain"]
        assert gain["promised"] == pytest.approx(expit(logit(0.7) / 2) - expit(logit(0.6) / 2), abs=1e-6)

    def test_voxels_without_an_answer_are_no_promise(self):
        known = np.ones((3, 4), bool)
        known[2, 1] = False
        gain = gathered((self.SAID, self.RIGHT, known, np.array([1, 2, 2, 0])))["gain"]
        assert gain["voxels"] == 2
        assert gain["kept"] == 0

    def test_where_nothing_is_deferred_it_is_undefined(self):
        gain = gathered((self.SAID, self.RIGHT, None, None))["gain"]
        assert gain == {"promised": None, "kept": None, "voxels": 0}


def test_an_expert_without_answers_has_null_and_no_nan():
    said, right = draws(5, 100)
    known = np.ones(said.shape, bool)
    known[1] = False
    summary = gathered((said, right, known, None), heads=[IDENTITY] * 3)
    found = summary["heads"]["ann"]["all"]["after"]
    assert found == {"probability": [], "right": [], "voxels": [], "ece": None, "bias": None}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


@pytest.mark.parametrize("cases", [0, 1])
def test_without_voxels_everything_is_undefined(cases):
    empty = (np.zeros((3, 0), np.float32), np.zeros((3, 0), bool), None, None)
    summary = gathered(*[empty] * cases)
    assert summary["least_certain"] == {"wanted": 0.02, "share": None, "below": None}
    assert summary["heads"]["model"]["least_certain"]["before"]["ece"] is None


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_probabilities_at_the_ends_are_counted(extreme):
    said = np.full((3, 5), extreme, np.float32)
    heads = gathered((said, np.ones(said.shape, bool), None, None))["heads"]
    assert heads["model"]["least_certain"]["before"]["voxels"] == [5]
    assert heads["model"]["least_certain"]["before"]["bias"] == pytest.approx(extreme - 1, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"probabilities": np.full((2, 4), 0.5)}, r"shapes differ: probabilities \(2, 4\), right \(3, 4\)"),
        ({"route": np.zeros(3, int)}, r"shape \(3, 3\) for 3 heads and a route of shape \(3,\), got \(3, 4\)"),
        ({"route": np.full(4, 3)}, r"routes must lie in \[0, 2\], got 3 to 3"),
        ({"right": np.ones((3, 4))}, "right must be bool, got dtype float64"),
        ({"probabilities": np.full((3, 4), 1.5)}, r"must lie in \[0, 1\], got 1.5"),
        ({"probabilities": np.array([[0.5], [np.nan], [0.5]]).repeat(4, 1)}, r"must lie in \[0, 1\], got nan"),
        ({"probabilities": np.ones((3, 4), int)}, "must be real floating point, got dtype int64"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_case(change, said):
    given = {
        "probabilities": np.full((3, 4), 0.5),
        "right": np.ones((3, 4), bool),
        "known": np.ones((3, 4), bool),
        "route": np.zeros(4, int),
    }
    with pytest.raises(ValueError, match=f"case x: .*{said}"):
        ReliabilityStatistics(NAMES).update("x", **given | change)


def test_too_few_maps_and_names_that_come_twice_are_refused():
    with pytest.raises(ValueError, match="got 2 calibrators for the heads model, ann, bob"):
        ReliabilityStatistics(NAMES, [IDENTITY] * 2)
    with pytest.raises(ValueError, match="names of heads must be distinct"):
        ReliabilityStatistics(("model", "model"))


# In an evaluation


def scored(name, *, routing=True, ignored=None):
    generator = np.random.default_rng(7)
    reference = generator.integers(0, 2, (6, 7))
    model, *experts = (np.where(generator.random((6, 7)) < 0.7, reference, 1 - reference) for _ in range(3))
    experts = np.stack(experts)
    experts[0, 0] = MISSING
    if ignored is not None:
        reference[1] = ignored
    said = generator.uniform(0.1, 0.9, (3, 6, 7)).astype(np.float32)
    said[:, 2] = np.nan
    prediction = PredictedCase(
        name,
        model=model,
        route=np.full((6, 7), 2, np.uint8),
        probability=np.zeros((6, 7), np.float32),
        gain=np.zeros((6, 7), np.float32),
        expert=np.ones((6, 7), int),
        routing=said if routing else None,
    )
    return EvaluatedCase(prediction=prediction, reference=reference, answers=experts, ignore_label=ignored)


def evaluated(*cases, **options):
    evaluation = Evaluation([1], ["ann", "bob"], **options)
    for case in cases:
        evaluation.update(case)
    return evaluation.summary(num_resamples=10)["reliability"]


def voxels(summary):
    return {name: sum(head["all"]["before"]["voxels"]) for name, head in summary["heads"].items()}


def test_an_evaluation_counts_neither_missing_answers_nor_ignored_and_unpredicted_voxels():
    assert voxels(evaluated(scored("a"))) == {"model": 35, "ann": 28, "bob": 35}
    assert voxels(evaluated(scored("a", ignored=9))) == {"model": 28, "ann": 21, "bob": 28}
    assert voxels(evaluated(scored("a"), scored("b"))) == {"model": 70, "ann": 56, "bob": 70}


def test_right_is_who_agrees_with_the_reference():
    case = scored("a")
    summary = evaluated(scored("a"))
    predicted = np.arange(6) != 2
    for name, labels in (("model", case.model), ("bob", case.answers[1])):
        found = summary["heads"][name]["all"]["before"]
        share = (labels == case.reference)[predicted].mean()
        assert np.average(found["right"], weights=found["voxels"]) == pytest.approx(share)
    kept = (case.answers[1] == case.reference).astype(int) - (case.model == case.reference)
    assert summary["gain"]["kept"] == pytest.approx(kept[predicted].mean())


def test_an_evaluation_passes_its_calibration_on():
    summary = evaluated(scored("a"), calibration=[IDENTITY, Temperature(3.0), IDENTITY])
    ann, bob = (summary["heads"][name]["all"] for name in ("ann", "bob"))
    assert ann["after"] != ann["before"]
    assert bob["after"] == bob["before"]


def test_without_routing_probabilities_an_evaluation_has_no_reliability():
    assert evaluated(scored("a", routing=False)) is None


@pytest.mark.parametrize("first", [True, False])
def test_routing_probabilities_of_some_cases_only_are_refused(first):
    with pytest.raises(ValueError, match="case b and earlier cases do not all have routing probabilities"):
        evaluated(scored("a", routing=first), scored("b", routing=not first))


def test_the_least_certain_voxels_are_the_same_after_calibration():
    """Calibration by a high temperature brings nearly all voxels into the lowest bins."""
    generator = np.random.default_rng(0)
    said = generator.beta(8, 1, (1, 5000)).astype(np.float32)
    right, known, route = generator.random(said.shape) < 0.9, np.ones(said.shape, bool), np.zeros(5000, np.uint8)
    calibrated = Temperature(20.0)(said)
    before, after, together = (
        ReliabilityStatistics(["m"]),
        ReliabilityStatistics(["m"]),
        ReliabilityStatistics(["m"], [Temperature(20.0)]),
    )
    before.update("a", said, right, known, route)
    together.update("a", said, right, known, route)
    after.update("a", calibrated, right, known, route, uncalibrated=said[0])
    chosen = [each.summary()["least_certain"] for each in (before, together, after)]
    assert chosen[0] == chosen[1] == chosen[2]
    (expected, found) = (each.summary()["heads"]["m"]["least_certain"] for each in (together, after))
    assert sum(found["before"]["voxels"]) == sum(expected["after"]["voxels"]) < 0.05 * 5000
    assert found["before"]["ece"] == pytest.approx(expected["after"]["ece"], abs=0.01)
    with pytest.raises(ValueError, match="shapes differ"):
        after.update("b", calibrated, right, known, route, uncalibrated=said)
