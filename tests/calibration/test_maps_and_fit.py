import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from nnunetv2_deferral.calibration import selection as fit_module
from nnunetv2_deferral.calibration.selection import select_by_statistics, select_calibrator
from nnunetv2_deferral.decision.calibrators import (
    IDENTITY,
    MAX_KNOTS,
    Identity,
    Isotonic,
    Temperature,
    apply,
    calibrator_from_dict,
)
from nnunetv2_deferral.evaluation.head_statistics import HeadStatistics
from nnunetv2_deferral.evaluation.reliability import Reliability, reliability

KNOTS = Isotonic((-3.0, 0.5, 4.0), (0.1, 0.3, 0.999))
MAPS = [IDENTITY, Temperature(2.5), Temperature(0.3), KNOTS, Isotonic((2.0,), (0.4,))]


def draws(seed, said=lambda truth: truth, number=20_000, mean=3.0, spread=2.0):
    """Probabilities, and whether it was right, where the logit of being right is `truth` and `said(truth)` was said."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(mean, spread, number)
    return expit(said(truth)).astype(np.float32), generator.random(number) < expit(truth)


def counted(cases):
    statistics = HeadStatistics()
    for name, (probabilities, right) in cases.items():
        statistics.update(name, probabilities, right)
    return statistics


def cases_that_say(said=lambda truth: truth, groups=6, **options):
    return {f"case_{seed}": draws(seed, said, **options) for seed in range(groups)}


def joined(cases):
    return tuple(np.concatenate(each) for each in zip(*cases.values(), strict=True))


def slow_log_loss(probabilities, right, temperature=1.0):
    probabilities = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    odds = (probabilities / (1 - probabilities)) ** (1 / temperature)
    return float(np.mean(np.log(np.where(right, 1 + 1 / odds, 1 + odds))))


def slow_temperature(probabilities, right):
    return minimize_scalar(lambda t: slow_log_loss(probabilities, right, t), bounds=(0.1, 9)).x


def steps(count):
    """Statistics that ask for `count` blocks or more: every fine bin has a share of its own, ever higher."""
    statistics, logits = HeadStatistics(), np.linspace(-8, 8, count)
    for name in ("a", "b"):
        number = 100_000
        for x in logits:
            right = np.arange(number) < round(number * expit(2 + x / 2 + 0.4 * math.sin(x)))
            statistics.update(name, np.full(number, expit(x)), right)
    return statistics


# Fitting


@pytest.mark.parametrize("true", [0.5, 1.7, 3.0])
def test_a_known_temperature_is_recovered_and_chosen(true):
    found = select_by_statistics(counted(cases_that_say(lambda truth: truth * true, mean=1, spread=1.5)))
    assert isinstance(found.calibrator, Temperature)
    assert found.calibrator.temperature == pytest.approx(true, rel=0.03)
    assert found.log_loss["temperature"] < found.log_loss["none"]


@pytest.mark.parametrize("seed", range(3))
def test_a_calibrated_head_stays_as_it_is(seed):
    cases = {str(each): draws(100 * seed + each, number=50_000) for each in range(5)}
    assert select_by_statistics(counted(cases)).calibrator == Identity()


def test_a_shift_of_the_logit_takes_an_isotonic_map_which_repairs_it_on_cases_it_has_not_seen():
    found = select_by_statistics(counted(cases_that_say(lambda truth: truth + 2)))
    assert isinstance(found.calibrator, Isotonic)
    assert found.log_loss["isotonic"] < found.log_loss["temperature"]
    new = counted({"new": draws(99, lambda truth: truth + 2, number=200_000)})
    before, after = reliability(new), reliability(new, found.calibrator)
    assert before.ece > 0.08
    assert after.ece < 0.01
    assert before.bias == pytest.approx(before.ece)  # too sure everywhere
    assert abs(after.bias) < 0.01


def test_held_back_losses_are_those_of_maps_that_have_not_seen_the_group():
    cases = {"a": draws(0, lambda truth: 2 * truth), "b": draws(1, lambda truth: truth / 2)}
    found = select_by_statistics(counted(cases))

    held_back = [
        slow_log_loss(*cases[unseen], slow_temperature(*cases[seen])) for seen, unseen in (("a", "b"), ("b", "a"))
    ]
    assert found.log_loss["temperature"] == pytest.approx(np.mean(held_back), rel=1e-3)
    assert found.log_loss["temperature"] > found.log_loss["none"]  # the other case is no guide
    assert found.calibrator == IDENTITY


@pytest.mark.parametrize(("folds", "parts"), [(2, 2), (5, 5), (50, 7)])
def test_every_group_is_held_back_once_and_there_are_no_more_parts_than_groups(folds, parts, monkeypatch):
    statistics = counted(cases_that_say(groups=7, number=50))
    seen = []

    def candidates(bins):
        seen.append(bins.voxels.sum())
        return IDENTITY, Temperature(2.0), KNOTS

    monkeypatch.setattr(fit_module, "_candidates", candidates)
    select_by_statistics(statistics, folds=folds)
    assert len(seen) == parts + 1
    assert sum(350 - each for each in seen[:-1]) == 350
    assert seen[-1] == 350


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ((1.0, 1.0, 1.0), "none"),
        ((1.0, 0.99991, 0.99991), "none"),
        ((1.0, 0.9998, 0.99975), "temperature"),
        ((1.0, 0.9998, 0.9996), "isotonic"),
        ((1.0, 2.0, 0.9), "isotonic"),
    ],
)
def test_a_more_complex_map_must_be_worth_it(losses, chosen, monkeypatch):
    by_kind = dict(zip(("none", "temperature", "isotonic"), losses, strict=True))
    monkeypatch.setattr(fit_module, "_loss", lambda bins, each: by_kind[each.kind] * bins.voxels.sum())
    found = select_by_statistics(counted(cases_that_say(number=500)))
    assert found.calibrator.kind == chosen
    assert found.log_loss == pytest.approx(by_kind)


@pytest.mark.parametrize("everywhere", [True, False], ids=["right", "wrong"])
def test_a_head_that_is_always_right_or_always_wrong_gets_finite_maps(everywhere):
    cases = {name: (said, np.full(said.shape, everywhere)) for name, (said, _) in cases_that_say(groups=3).items()}
    statistics = counted(cases)
    found = select_by_statistics(statistics)
    assert all(math.isfinite(loss) for loss in found.log_loss.values())
    for each in fit_module._candidates(statistics.bins()):
        values = each(np.array([0.0, 0.01, 0.5, 0.99, 1.0]))
        assert np.isfinite(values).all()
        assert (np.diff(values) >= 0).all()
    assert abs(reliability(statistics, found.calibrator).bias) < 1e-3


def test_temperatures_are_bounded_on_both_sides():
    said = np.full(1000, 0.51)
    always, never = ({name: (said, np.full(1000, right)) for name in "ab"} for right in (True, False))
    temperatures = [fit_module._candidates(counted(cases).bins())[1].temperature for cases in (always, never)]
    assert temperatures == [0.05, 20]


def test_a_block_without_errors_is_as_sure_as_its_size_allows():
    found = fit_module.fit_isotonic(counted({"a": (np.full(999, 0.9), np.ones(999, bool))}).bins())
    assert found.probabilities == (999.5 / 1000,)
    assert found.logits == pytest.approx([logit(0.9)])


def test_few_pure_voxels_at_an_end_do_not_put_knots_out_of_order():
    # one wrong voxel at the low end would become (0 + 1/2) / 2 = 0.25, above the 0.1 that follow
    said = np.concatenate(([0.05], np.full(1000, 0.2)))
    found = fit_module.fit_isotonic(counted({"a": (said, np.arange(1001) > 900)}).bins())
    assert found.probabilities == (pytest.approx(100.5 / 1002),)


def test_knots_stand_at_the_mean_logit_and_the_share_of_each_block():
    said, right = np.repeat([0.2, 0.5, 0.6, 0.9], 10), np.zeros(40, bool)
    right[[0, 10, 11, 12, 13, 20, 21, *range(30, 38)]] = True  # 1, 4, 2 and 8 of 10: those between change places
    found = fit_module.fit_isotonic(counted({"a": (said, right)}).bins())
    assert found.probabilities == pytest.approx((0.1, 0.3, 0.8))
    assert found.logits == pytest.approx((logit(0.2), logit(0.6) / 2, logit(0.9)))


def test_blocks_weigh_what_they_hold():
    sizes, shares = (20, 90, 10), (9, 54, 2)
    right = np.concatenate([np.arange(size) < share for size, share in zip(sizes, shares, strict=True)])
    found = fit_module.fit_isotonic(counted({"a": (np.repeat([0.2, 0.5, 0.6], sizes), right)}).bins())
    assert found.probabilities == pytest.approx((0.45, 0.56))  # by bins instead of voxels, all three were one
    assert found.logits == pytest.approx((logit(0.2), logit(0.6) / 10))


def test_blocks_that_are_too_many_are_merged_where_it_costs_least():
    statistics = steps(200)
    bins = statistics.bins()
    assert fit_module._pooled(bins).voxels.size > MAX_KNOTS
    merged = fit_module.fit_isotonic(bins)
    assert len(merged.logits) == MAX_KNOTS
    truth = bins.right / bins.voxels
    assert np.abs(expit(merged.on_logits(bins.logits)) - truth).max() < 0.01
    least = float(np.sum(fit_module._least_loss(bins)))
    assert fit_module._loss(bins, merged) == pytest.approx(least, rel=1e-3)


def test_few_blocks_are_not_merged():
    bins = steps(20).bins()
    found = fit_module.fit_isotonic(bins)
    assert found.logits == pytest.approx(bins.logits[np.r_[True, np.diff(bins.right) > 0]])


def test_one_group_is_refused():
    with pytest.raises(ValueError, match=r"at least two cases \(patients\).*got case_0"):
        select_by_statistics(counted(cases_that_say(groups=1, number=10)))
    with pytest.raises(ValueError, match="got none"):
        select_by_statistics(HeadStatistics())


def test_a_group_without_known_voxels_is_no_group():
    statistics = counted(cases_that_say(groups=1, number=10))
    statistics.update("unknown", np.full(3, 0.5), np.ones(3, bool), np.zeros(3, bool))
    statistics.update("empty", np.zeros(0), np.zeros(0, bool))
    assert statistics.groups == ("case_0",)


def test_less_than_two_folds_are_refused():
    with pytest.raises(ValueError, match="got 1"):
        select_by_statistics(counted(cases_that_say(number=10)), folds=1)


def test_arrays_of_cases_are_fitted_like_their_statistics():
    cases = cases_that_say(lambda truth: truth + 1, number=300)
    probabilities, right = zip(*cases.values(), strict=True)
    assert select_calibrator(probabilities, right, groups=list(cases)) == select_by_statistics(counted(cases))
    unnamed = select_calibrator(np.stack(probabilities).reshape(6, 20, 15), np.stack(right).reshape(6, 20, 15))
    assert unnamed == select_by_statistics(counted(cases))


def test_cases_of_one_patient_are_held_back_together():
    probabilities, right = zip(*cases_that_say(groups=3, number=300).values(), strict=True)
    statistics = counted(
        {"a": tuple(map(np.concatenate, (probabilities[:2], right[:2]))), "b": (probabilities[2], right[2])}
    )
    found = select_calibrator(probabilities, right, groups=["a", "a", "b"])
    assert found.log_loss == pytest.approx(select_by_statistics(statistics).log_loss, rel=1e-9)
    with pytest.raises(ValueError, match="got a;"):
        select_calibrator(probabilities, right, groups=["a", "a", "a"])


def test_only_valid_voxels_of_arrays_count():
    probabilities, right = (np.stack(each) for each in zip(*cases_that_say(groups=2, number=300).values(), strict=True))
    valid = np.arange(300) % 3 > 0
    spoiled = np.where(valid, probabilities, np.nan)
    expected = select_calibrator(probabilities[:, valid], right[:, valid])
    assert select_calibrator(spoiled, right, valid=[valid, valid]) == expected


@pytest.mark.parametrize("what", ["right", "groups", "valid"])
def test_arrays_of_other_numbers_of_cases_are_refused(what):
    probabilities, right = zip(*cases_that_say(groups=3, number=5).values(), strict=True)
    given = {"right": right, "groups": ["a", "b", "c"], "valid": [np.ones(5, bool)] * 3}
    given[what] = given[what][:2]
    with pytest.raises(ValueError, match=f"probabilities has 3 cases, but {what} has 2"):
        select_calibrator(probabilities, **given)


# Statistics


@pytest.mark.parametrize("true", [0.6, 2.2])
def test_bins_give_the_losses_and_the_temperature_of_the_voxels_themselves(true):
    cases = cases_that_say(lambda truth: true * truth, groups=4, number=3000)
    probabilities, right = joined(cases)
    statistics = counted(cases)
    assert select_by_statistics(statistics).log_loss["none"] == pytest.approx(
        slow_log_loss(probabilities, right), abs=1e-4
    )
    found = fit_module._fitted_temperature(statistics.bins()).temperature
    assert found == pytest.approx(slow_temperature(probabilities, right), abs=1e-3)


def test_the_mean_logit_of_a_bin_is_that_of_its_voxels_not_its_centre():
    said = expit(np.array([1.0001, 1.0002, 1.0003]))
    bins = counted({"a": (said, np.array([True, False, True]))}).bins()
    assert bins.logits == pytest.approx([1.0002], abs=1e-9)
    assert (bins.voxels.tolist(), bins.right.tolist()) == ([3], [2])


def test_saturated_probabilities_have_finite_logits():
    said = np.array([0, 1, 1], dtype=np.float32)
    bins = counted({"a": (said, np.array([False, True, True]))}).bins()
    assert bins.logits == pytest.approx([logit(1e-7), logit(1 - 1e-7)])
    assert bins.voxels.tolist() == [1, 2]


def test_the_order_of_groups_does_not_matter_and_a_group_may_come_in_pieces(monkeypatch):
    cases = cases_that_say(lambda truth: truth + 1, number=2000)
    whole = select_by_statistics(counted(cases))
    assert select_by_statistics(counted(dict(reversed(cases.items())))) == whole
    monkeypatch.setattr("nnunetv2_deferral.arrays.CHUNK_VOXELS", 7)
    pieces = HeadStatistics()
    for start, end in ((0, 500), (500, 2000)):
        for name, (probabilities, right) in cases.items():
            pieces.update(name, probabilities[start:end], right[start:end])
    assert select_by_statistics(pieces).log_loss == pytest.approx(whole.log_loss, rel=1e-9)


def test_all_voxels_are_those_of_all_groups():
    cases = cases_that_say(groups=3, number=300)
    together, one = counted(cases), counted({"all": joined(cases)})
    for first, second in zip(together.bins(), one.bins(), strict=True):
        assert first == pytest.approx(second)
    assert together.bins(["case_1"]).voxels.sum() == 300


def test_only_known_voxels_count_whatever_stands_elsewhere():
    probabilities, right = draws(0, number=60)
    valid = np.arange(60) % 3 > 0
    spoiled = np.where(valid, probabilities, np.float32(np.nan))
    masked = HeadStatistics()
    masked.update("a", spoiled.reshape(3, 4, 5), right.reshape(3, 4, 5), valid.reshape(3, 4, 5))
    for first, second in zip(masked.bins(), counted({"a": (probabilities[valid], right[valid])}).bins(), strict=True):
        assert first == pytest.approx(second)


GOOD = (np.full(3, 0.5), np.ones(3, bool), np.ones(3, bool))


@pytest.mark.parametrize(
    ("position", "bad", "message"),
    [
        (0, np.array([0.5, 1.5, 0.5]), r"\[0, 1\], got 1.5"),
        (0, np.array([0.5, -0.25, 0.5]), r"\[0, 1\], got -0.25"),
        (0, np.array([0.5, np.nan, 0.5]), r"\[0, 1\], got nan"),
        (0, np.array([0, 1, 1]), "floating point, got dtype int64"),
        (0, np.full(4, 0.5), r"probabilities \(4,\), right \(3,\)"),
        (1, np.ones(3), "right must be bool, got dtype float64"),
        (2, np.ones(3, np.uint8), "valid must be bool, got dtype uint8"),
        (2, np.ones((3, 1), bool), r"valid \(3, 1\)"),
    ],
)
def test_bad_voxels_are_refused_and_nothing_is_added(position, bad, message):
    statistics, arrays = HeadStatistics(), list(GOOD)
    arrays[position] = bad
    with pytest.raises(ValueError, match=message):
        statistics.update("a", *arrays)
    assert statistics.groups == ()


# Maps


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("each", MAPS, ids=str)
def test_maps_keep_the_shape_and_the_order_and_stay_within_0_and_1(each, dtype):
    generator = np.random.default_rng(0)
    said = np.concatenate((generator.random(3000), expit(generator.uniform(-17, 17, 2996)), [0, 1, 0, 1]))
    said = said.astype(dtype).reshape(6, 10, 100)
    found = each(said)
    assert (found.dtype, found.shape) == (np.float32, said.shape)
    assert found.min() >= 0
    assert found.max() <= 1
    assert (np.diff(found.reshape(-1)[np.argsort(said, axis=None)]) >= 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_afit_isotonic_map_keeps_the_ranking_between_its_knots_and_beyond(seed):
    generator = np.random.default_rng(seed)
    coefficients = generator.uniform(-1, 1, 2)
    cases = cases_that_say(lambda truth: coefficients[0] + truth + 2 * np.sin(truth * coefficients[1]), 2, number=3000)
    found = fit_module.fit_isotonic(counted(cases).bins())
    inside = np.sort(generator.uniform(found.logits[0], found.logits[-1], 1000))
    everywhere = np.concatenate(([-16.0, found.logits[0] - 1e-3], inside, [found.logits[-1] + 1e-3, 16.0]))
    assert (np.diff(found.on_logits(everywhere)) > 0).all()


def test_an_isotonic_map_goes_through_its_knots_and_follows_the_logit_beyond_them():
    at, below, above = (KNOTS(expit(np.array(logits))) for logits in (KNOTS.logits, [-5.0], [6.0]))
    assert at == pytest.approx(KNOTS.probabilities, abs=1e-6)
    assert logit(below) == pytest.approx([logit(0.1) - 2], abs=1e-4)
    assert logit(above) == pytest.approx([logit(0.999) + 2], abs=1e-2)
    between = KNOTS(expit(np.array([2.25])))
    assert logit(between) == pytest.approx([(logit(0.3) + logit(0.999)) / 2], abs=1e-4)


def test_a_temperature_divides_the_logit():
    assert Temperature(2.0)(expit(np.array([-4.0, 3.0]))) == pytest.approx(expit(np.array([-2, 1.5])), abs=1e-6)


def test_the_identity_changes_no_bit():
    said = np.array([0, 1e-30, 0.3, 1 - 2**-24, 1], dtype=np.float32)
    assert IDENTITY(said).tolist() == said.tolist()


def test_large_volumes_are_mapped_in_pieces_that_fit_together(monkeypatch):
    said = np.random.default_rng(0).random((5, 7))
    whole = KNOTS(said)
    monkeypatch.setattr("nnunetv2_deferral.arrays.CHUNK_VOXELS", 4)
    assert KNOTS(said).tolist() == whole.tolist()


@pytest.mark.parametrize("each", MAPS, ids=str)
@pytest.mark.parametrize(
    ("bad", "message"),
    [(np.array([1.1]), "got 1.1"), (np.array([np.nan]), "got nan"), (np.array([1]), "got dtype int")],
)
def test_maps_refuse_what_is_no_probability(each, bad, message):
    with pytest.raises(ValueError, match=message):
        each(bad)


def test_maps_survive_json_exactly():
    fitted = fit_module._candidates(counted(cases_that_say(lambda truth: truth * 1.3 + 1)).bins())
    for each in (*fitted, *MAPS):
        written = json.dumps(each.to_dict())
        assert calibrator_from_dict(json.loads(written)) == each
    assert [each.to_dict()["kind"] for each in fitted] == ["none", "temperature", "isotonic"]
    assert KNOTS.to_dict() == {"kind": "isotonic", "logits": [-3.0, 0.5, 4.0], "probabilities": [0.1, 0.3, 0.999]}


def isotonic(logits, probabilities):
    return {"kind": "isotonic", "logits": logits, "probabilities": probabilities}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (["none"], r"mapping.*\['none'\]"),
        ({}, "kind.*got None"),
        ({"kind": "platt"}, "none, temperature, isotonic, got 'platt'"),
        ({"kind": ["none"]}, r"got \['none'\]"),
        ({"kind": "none", "temperature": 2.0}, r"none must have the keys \[\], got \['temperature'\]"),
        ({"kind": "temperature"}, r"\['temperature'\], got \[\]"),
        ({"kind": "isotonic", "logits": [1.0]}, r"\['logits', 'probabilities'\], got \['logits'\]"),
        ({"kind": "temperature", "temperature": 0}, "positive and finite, got 0"),
        ({"kind": "temperature", "temperature": -1.5}, "got -1.5"),
        ({"kind": "temperature", "temperature": math.inf}, "got inf"),
        ({"kind": "temperature", "temperature": math.nan}, "got nan"),
        ({"kind": "temperature", "temperature": True}, "got True"),
        ({"kind": "temperature", "temperature": "2"}, "got '2'"),
        (isotonic([], []), r"logits must be 1 to 64 finite numbers, got \[\]"),
        (isotonic(1.0, 0.5), "logits must be 1 to 64 finite numbers, got 1.0"),
        (isotonic([float(i) for i in range(65)], [0.5]), "logits must be 1 to 64"),
        (isotonic([1.0, None], [0.2, 0.3]), r"logits must be .* got \[1.0, None\]"),
        (isotonic([1.0], [math.nan]), r"probabilities must be .* got \[nan\]"),
        (isotonic([1.0, 1.0], [0.2, 0.3]), r"logits must be strictly ascending, got \[1.0, 1.0\]"),
        (isotonic([1.0, 2.0], [0.3, 0.2]), r"probabilities must be strictly ascending, got \[0.3, 0.2\]"),
        (isotonic([1.0, 2.0], [0.0, 0.2]), r"must lie in \(0, 1\), got \(0.0, 0.2\)"),
        (isotonic([1.0, 2.0], [0.1, 1.0]), r"must lie in \(0, 1\), got \(0.1, 1.0\)"),
        (isotonic([1.0, 2.0], [0.1]), "got 2 logits but 1 probabilities"),
    ],
)
def test_what_is_no_map_is_refused_by_name(content, message):
    with pytest.raises(ValueError, match=message):
        calibrator_from_dict(content)


def test_apply_puts_every_channel_through_its_own_map():
    said = np.random.default_rng(0).random((3, 4, 5))
    maps = [IDENTITY, Temperature(3.0), KNOTS]
    found = apply(maps, said)
    assert (found.dtype, found.shape) == (np.float32, said.shape)
    for channel, each in enumerate(maps):
        assert found[channel].tolist() == each(said[channel]).tolist()


@pytest.mark.parametrize("shape", [(2, 4), (4, 4), ()])
def test_apply_needs_a_map_for_every_channel(shape):
    with pytest.raises(ValueError, match=r"got 3 maps for shape \("):
        apply([IDENTITY] * 3, np.full(shape, 0.5))


# Reliability


def test_the_calibration_error_of_a_known_case():
    statistics = HeadStatistics()
    statistics.update("a", np.full(100, 0.8), np.arange(100) < 60)  # says 0.8, is 0.6
    statistics.update("b", np.full(300, 0.3), np.arange(300) < 120)  # says 0.3, is 0.4
    found = reliability(statistics)
    assert found.probability == pytest.approx([0.3, 0.8])
    assert found.right == pytest.approx([0.4, 0.6])
    assert found.voxels.tolist() == [300, 100]
    assert found.ece == pytest.approx(0.75 * 0.1 + 0.25 * 0.2)
    assert found.bias == pytest.approx(-0.75 * 0.1 + 0.25 * 0.2)
    assert reliability(statistics, num_bins=1).ece == pytest.approx(0.025)  # errors of both signs cancel in one bin


def test_reliability_is_that_of_the_calibrated_probabilities():
    statistics = counted({"a": (np.full(100, 0.9), np.arange(100) < 75)})
    assert reliability(statistics, Temperature(2.0)).probability == pytest.approx([0.75])  # sqrt(9) : 1
    assert reliability(statistics, Temperature(2.0)).ece == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_reliability_bins_hold_about_the_same_number_of_voxels(num_bins):
    probabilities, right = draws(0, number=60_000)
    found = reliability(counted({"a": (probabilities, right)}), num_bins=num_bins)
    assert found.voxels == pytest.approx([60_000 / num_bins] * num_bins, rel=0.2)
    assert found.voxels.sum() == 60_000
    order = np.argsort(probabilities)
    slow = [probabilities[part].mean() for part in np.array_split(order, num_bins)]
    assert found.probability == pytest.approx(slow, abs=0.01)
    assert np.average(found.right, weights=found.voxels) == pytest.approx(right.mean())


@pytest.mark.parametrize(("voxels", "expected"), [((30, 40, 30), [30, 70]), ((60, 40), [60, 40])])
def test_voxels_of_one_probability_go_where_their_middle_belongs(voxels, expected):
    said = np.repeat([0.2, 0.5, 0.7][: len(voxels)], voxels)
    assert reliability(counted({"a": (said, said > 0)}), num_bins=2).voxels.tolist() == expected


def test_a_heavy_probability_takes_a_bin_of_its_own_size():
    said = np.concatenate((np.full(9000, 0.999), np.linspace(0.1, 0.9, 1000)))
    found = reliability(counted({"a": (said, np.ones(10_000, bool))}), num_bins=10)
    assert found.voxels.tolist() == [1000, 9000]


def test_without_voxels_errors_are_undefined():
    found = reliability(HeadStatistics())
    assert found.voxels.size == found.probability.size == found.right.size == 0
    assert math.isnan(found.ece)
    assert math.isnan(found.bias)


def test_reliability_needs_a_bin():
    with pytest.raises(ValueError, match="got 0"):
        reliability(HeadStatistics(), num_bins=0)


def test_reliability_is_written_in_json_types():
    found = Reliability(np.array([0.25, 0.75]), np.array([0.5, 0.75]), np.array([3, 1]))
    assert json.loads(json.dumps(found.to_dict())) == {
        "probability": [0.25, 0.75],
        "right": [0.5, 0.75],
        "voxels": [3, 1],
        "ece": 0.1875,
        "bias": -0.1875,
    }
