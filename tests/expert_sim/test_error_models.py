from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from nnunetv2_deferral.expert_sim.batches import simulate_batch
from nnunetv2_deferral.expert_sim.error_models import ERROR_MODELS, correlated_errors
from nnunetv2_deferral.expert_sim.profiles import ERROR_MODEL_NAMES, ExpertProfile
from nnunetv2_deferral.expert_sim.zones import Reference

torch.set_num_threads(1)

ABSOLUTE = ExpertProfile(name="absolute", foreground=0.8, background=0.95, boundary=0.7)
BOOSTED = ExpertProfile(name="boosted", foreground=0.75, background=0.9, edge_boost=0.06)
SHAPES = [(160, 150), (28, 32, 26)]


def ball(shape, radius, centre=None):
    centre = [size / 2 for size in shape] if centre is None else centre
    axes = torch.meshgrid(*[torch.arange(size) - c for size, c in zip(shape, centre, strict=True)], indexing="ij")
    return sum(axis**2 for axis in axes) < radius**2


def nested(shape, num_labels):
    """A ball of label 1 with, for three labels, a smaller one of label 2 within it, off the centre."""
    labels = ball(shape, 0.4 * min(shape)).to(torch.int16)
    if num_labels == 3:
        labels[ball(shape, 0.25 * min(shape), [size / 2 + 2 for size in shape])] = 2
    return labels


def reference_of(labels, num_labels, **options):
    return Reference.from_labels(labels, range(num_labels), **options)


def answer_image(reference, profile, model, seed=0):
    return ERROR_MODELS[model](reference, replace(profile, error_model=model), torch.Generator().manual_seed(seed))


def answer_in_batch(reference, profile, model, seed=0):
    """As the second image of a batch, whose first is another one."""
    labels = reference.labels if reference.valid is None else reference.labels.where(reference.valid, 99)
    return simulate_batch(
        torch.stack((labels.flip(0), labels)),
        [replace(profile, error_model=model)],
        reference.label_values,
        generator=torch.Generator().manual_seed(seed),
        boundary_width=reference.boundary_width,
        spacing=reference.spacing,
        ignore_label=None if reference.valid is None else 99,
    )[1, 0]


@pytest.fixture(params=[answer_image, answer_in_batch], ids=["image", "batch"])
def answer(request):
    """Both implementations: for the data loader and evaluations, and for batches on a GPU."""
    return request.param


def assert_within_sampling_error(right, accuracy):
    """Five standard deviations of a binomial count, and one voxel for rounding."""
    n = right.numel()
    allowed = 5 * np.sqrt(n * accuracy * (1 - accuracy)) + 1
    assert n > 100
    assert abs(int(right.sum()) - n * accuracy) <= allowed


def regions_of(reference, profile):
    """(mask, accuracy) for FG, BG, and the band on the foreground's and on the background's side."""
    inside, band = reference.labels != 0, reference.band
    yield inside & ~band, profile.foreground
    yield ~inside & ~band, profile.background
    yield inside & band, profile.band_accuracy(profile.foreground)
    yield ~inside & band, profile.band_accuracy(profile.background)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize("profile", [ABSOLUTE, BOOSTED], ids=lambda profile: profile.name)
def test_independent_errors_meet_every_accuracy(answer, shape, num_labels, profile):
    reference = reference_of(nested(shape, num_labels), num_labels)
    right = answer(reference, profile, "independent") == reference.labels
    for mask, accuracy in regions_of(reference, profile):
        assert_within_sampling_error(right[mask], accuracy)


@pytest.mark.parametrize("model", ["independent", "correlated"])
def test_wrong_labels_are_uniform_among_the_others(answer, model):
    labels = torch.full((300, 300), 2, dtype=torch.int16)
    reference = Reference.from_labels(labels, (0, 2, 5, 9))
    profile = replace(ABSOLUTE, foreground=0.4)
    wrong = torch.cat([answers[answers != 2] for answers in (answer(reference, profile, model, s) for s in range(4))])
    assert set(wrong.tolist()) == {0, 5, 9}
    tolerance = 0.01 if model == "independent" else 0.15  # blobs are few
    for value in (0, 5, 9):
        assert (wrong == value).float().mean().item() == pytest.approx(1 / 3, abs=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize("profile", [ABSOLUTE, BOOSTED], ids=lambda profile: profile.name)
def test_correlated_errors_meet_every_accuracy_to_the_voxel(answer, shape, num_labels, profile):
    reference = reference_of(nested(shape, num_labels), num_labels)
    wrong = answer(reference, profile, "correlated") != reference.labels
    inside, band = reference.labels != 0, reference.band
    assert abs(int(wrong[inside & ~band].sum()) - int((inside & ~band).sum()) * (1 - profile.foreground)) < 1
    assert abs(int(wrong[~inside & ~band].sum()) - int((~inside & ~band).sum()) * (1 - profile.background)) < 1
    if profile is ABSOLUTE:
        assert abs(int(wrong[band].sum()) - int(band.sum()) * (1 - profile.boundary)) < 1
    else:
        for mask, accuracy in list(regions_of(reference, profile))[2:]:
            assert abs(int(wrong[mask].sum()) - int(mask.sum()) * (1 - accuracy)) < 1


def test_correlated_errors_lie_together_and_independent_ones_do_not(answer):
    reference = reference_of(torch.zeros(200, 200, dtype=torch.int16), 2)
    neighbours = {}
    for model in ("independent", "correlated"):
        wrong = answer(reference, ABSOLUTE, model).bool()
        neighbours[model] = wrong[1:][wrong[:-1]].float().mean().item()
    assert neighbours["independent"] == pytest.approx(0.05, abs=0.03)
    assert neighbours["correlated"] > 0.7


def test_the_smoothness_of_correlated_errors_can_be_chosen():
    reference = reference_of(torch.zeros(200, 200, dtype=torch.int16), 2)
    blobs = []
    for sigma in (1.0, 3.0, 8.0):
        wrong = correlated_errors(reference, ABSOLUTE, torch.Generator().manual_seed(0), sigma=sigma)
        blobs.append(ndimage.label(wrong.numpy())[1])
    assert blobs[0] > 4 * blobs[1] > 8 * blobs[2]


def test_correlated_errors_are_as_likely_at_the_image_border_as_within(answer):
    reference = reference_of(torch.zeros(64, 64, dtype=torch.int16), 2)
    wrong = torch.stack([answer(reference, ABSOLUTE, "correlated", seed) for seed in range(150)]).float().mean(0)
    border = torch.ones(64, 64, dtype=torch.bool)
    border[4:-4, 4:-4] = False
    assert wrong[border].mean().item() == pytest.approx(0.05, abs=0.008)


def test_small_regions_err_as_often_as_they_should_over_many_draws(answer):
    labels = torch.zeros(9, 9, dtype=torch.int16)
    labels[4, 3:6] = 1
    reference = reference_of(labels, 2, boundary_width=0)
    wrong = [int((answer(reference, ABSOLUTE, "correlated", seed)[4, 3:6] == 0).sum()) for seed in range(400)]
    assert set(wrong) == {0, 1}  # 0.6 of three voxels, rounded up or down
    assert np.mean(wrong) == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize("profile", [ABSOLUTE, BOOSTED], ids=lambda profile: profile.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_boundary_bias_meets_the_band_to_the_voxel(answer, shape, num_labels, profile, seed):
    reference = reference_of(nested(shape, num_labels), num_labels)
    wrong = answer(reference, profile, "boundary_bias", seed) != reference.labels
    regions = list(regions_of(reference, profile))
    for mask, accuracy in regions[:2]:
        assert_within_sampling_error(~wrong[mask], accuracy)
    expected = sum(int(mask.sum()) * (1 - accuracy) for mask, accuracy in regions[2:])
    assert abs(int(wrong[reference.band].sum()) - expected) < 1


@pytest.mark.parametrize("shape", SHAPES)
def test_boundary_bias_goes_one_way_at_a_time_and_both_ways_over_draws(answer, shape):
    reference = reference_of(nested(shape, 2), 2)
    inside = reference.labels != 0
    directions = set()
    for seed in range(12):
        wrong = (answer(reference, ABSOLUTE, "boundary_bias", seed) != reference.labels) & reference.band
        outer, inner = int((wrong & ~inside).sum()), int((wrong & inside).sum())
        assert 0 in (outer, inner)
        directions.add("over" if outer else "under")
    assert directions == {"over", "under"}


def test_boundary_bias_flips_the_nearest_voxels_first_and_continues_on_the_other_side(answer):
    labels = torch.zeros(40, 30, dtype=torch.int16)
    labels[20:] = 1
    reference = reference_of(labels, 2, boundary_width=2)
    for error, rows in ((0.25, 1), (0.5, 2), (0.75, 3)):  # four rows of 30 in the band
        profile = replace(ABSOLUTE, foreground=1.0, background=1.0, boundary=1 - error)
        for seed in range(6):
            wrong = answer(reference, profile, "boundary_bias", seed) != labels
            flipped = wrong.all(dim=1).nonzero().flatten().tolist()
            assert int(wrong.sum()) == rows * 30
            assert flipped in {1: ([19], [20]), 2: ([18, 19], [20, 21]), 3: ([18, 19, 20], [19, 20, 21])}[rows]


def test_boundary_bias_with_touching_labels_moves_each_boundary_one_way(answer):
    labels = torch.zeros(60, 40, dtype=torch.int16)
    labels[20:40], labels[40:] = 1, 2
    reference = reference_of(labels, 3, boundary_width=1)
    profile = replace(ABSOLUTE, foreground=1.0, background=1.0, boundary=0.5)
    seen = set()
    for seed in range(20):
        rows = answer(reference, profile, "boundary_bias", seed)[:, 0].tolist()
        assert (answer(reference, profile, "boundary_bias", seed) != labels).sum() == 80
        seen.add((rows.index(1), rows.index(2)))
    assert seen == {(19, 39), (19, 41), (21, 39), (21, 41)}


def test_over_segmentation_gives_the_label_of_the_nearest_foreground(answer):
    labels = torch.zeros(30, 40, dtype=torch.int16)
    labels[10:20, 5:12], labels[10:20, 25:32] = 1, 2
    reference = reference_of(labels, 3)
    profile = replace(ABSOLUTE, foreground=1.0, background=1.0, boundary=0.8)
    for seed in range(8):
        answers = answer(reference, profile, "boundary_bias", seed)
        added = (answers != 0) & (labels == 0)
        columns = torch.arange(40).expand(30, 40)
        assert (answers[added] == torch.where(columns[added] < 18, 1, 2)).all()


def objects(shape=(200, 200), spacing=10):
    labels = torch.zeros(shape, dtype=torch.int16)
    for x in range(2, shape[0] - 5, spacing):
        for y in range(2, shape[1] - 5, spacing):
            labels[x : x + 5, y : y + 5] = 1 + (x // spacing + y // spacing) % 2
    return labels


def test_components_are_missed_whole_and_as_often_as_the_foreground_accuracy_says(answer):
    labels = objects()
    reference = reference_of(labels, 3)
    numbered, count = ndimage.label(labels.numpy() != 0)
    shares = []
    for seed in range(3):
        answers = answer(reference, ABSOLUTE, "missed_components", seed).numpy()
        right = ndimage.mean(answers == labels.numpy(), numbered, range(1, count + 1))
        assert set(right.tolist()) <= {0.0, 1.0}
        assert set(answers[(answers != labels.numpy()) & (labels.numpy() != 0)].tolist()) == {0}
        shares.append(right)
    assert_within_sampling_error(torch.from_numpy(np.concatenate(shares)), ABSOLUTE.foreground)


@pytest.mark.parametrize("profile", [ABSOLUTE, BOOSTED], ids=lambda profile: profile.name)
@pytest.mark.parametrize("labels", [objects(), nested((40, 44, 36), 3)], ids=["2d", "3d"])
def test_missed_components_leave_independent_errors_in_the_background(answer, labels, profile):
    reference = reference_of(labels, 3)
    right = answer(reference, profile, "missed_components") == labels
    outside, band = labels == 0, reference.band
    assert_within_sampling_error(right[outside & ~band], profile.background)
    assert_within_sampling_error(right[outside & band], profile.band_accuracy(profile.background))


def test_two_labels_that_touch_are_missed_apart_and_corners_connect(answer):
    labels = torch.zeros(12, 12, dtype=torch.int16)
    labels[2:5, 2:5], labels[5:8, 2:5], labels[8:10, 5:7] = 1, 2, 2
    reference = reference_of(labels, 3)
    profile = replace(ABSOLUTE, foreground=0.5, background=1.0, boundary=1.0)
    seen = set()
    for seed in range(40):
        answers = answer(reference, profile, "missed_components", seed)
        seen.add((int(answers[3, 3]), int(answers[6, 3]), int(answers[8, 5])))
    assert seen == {(0, 0, 0), (1, 0, 0), (0, 2, 2), (1, 2, 2)}


@pytest.mark.parametrize("model", ERROR_MODEL_NAMES)
@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("shape", [(30, 40), (1, 30, 40), (1, 1), (8, 9, 10)])
def test_an_image_of_one_label_is_answered(answer, model, value, shape):
    labels = torch.full(shape, value, dtype=torch.int16)
    answers = answer(reference_of(labels, 3), ABSOLUTE, model)
    assert answers.shape == labels.shape
    assert answers.dtype == torch.int16


@pytest.mark.parametrize("model", ERROR_MODEL_NAMES)
def test_an_image_without_a_band_is_answered(answer, model):
    reference = reference_of(nested((50, 50), 3), 3, boundary_width=0)
    right = answer(reference, ABSOLUTE, model) == reference.labels
    assert_within_sampling_error(right[reference.labels == 0], ABSOLUTE.background)


@pytest.mark.parametrize("model", ERROR_MODEL_NAMES)
def test_a_perfect_expert_repeats_the_reference_and_a_hopeless_one_never_does(answer, model):
    reference = reference_of(nested((60, 50), 3), 3)
    perfect = ExpertProfile(name="perfect", foreground=1, background=1, boundary=1)
    hopeless = ExpertProfile(name="hopeless", foreground=0, background=0, boundary=0)
    assert torch.equal(answer(reference, perfect, model), reference.labels)
    assert not (answer(reference, hopeless, model) == reference.labels).any()


@pytest.mark.parametrize("model", ERROR_MODEL_NAMES)
def test_the_generator_is_the_only_source_of_chance(answer, model):
    reference = reference_of(nested((60, 50), 3), 3)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()
    first = answer(reference, ABSOLUTE, model, seed=5)
    assert torch.equal(torch_before, torch.get_rng_state())
    assert np.array_equal(numpy_before[1], np.random.get_state()[1])
    assert numpy_before[2] == np.random.get_state()[2]
    assert torch.equal(first, answer(reference, ABSOLUTE, model, seed=5))
    assert not torch.equal(first, answer(reference, ABSOLUTE, model, seed=6))


def test_the_spacing_scales_the_band_and_the_correlation_by_axis(answer):
    labels = torch.zeros(120, 160, dtype=torch.int16)
    labels[60:, 80:] = 1
    reference = reference_of(labels, 2, spacing=(2, 0.5))
    rows, columns = torch.arange(120)[:, None], torch.arange(160)
    assert torch.equal(reference.band[:, 140:], ((rows >= 59) & (rows < 61)).expand(120, 20))
    assert torch.equal(reference.band[80:], ((columns >= 76) & (columns < 84)).expand(40, 160))
    plain = reference_of(torch.zeros(200, 200, dtype=torch.int16), 2, spacing=(2, 0.5))
    wrong = torch.stack([answer(plain, ABSOLUTE, "correlated", seed) for seed in range(6)]).double()
    wrong -= wrong.mean()
    down, along = ((wrong[:, 1:] * wrong[:, :-1]).mean(), (wrong[:, :, 4:] * wrong[:, :, :-4]).mean())
    assert down.item() == pytest.approx(along.item(), abs=0.1 * wrong.var().item())  # both lags are 2
    assert along > 0.4 * wrong.var()


def test_boundary_bias_flips_what_is_nearest_in_the_spacing(answer):
    labels = torch.zeros(40, 60, dtype=torch.int16)
    labels[:, 30:], labels[20:] = 1, 1  # borders along both axes
    reference = reference_of(labels, 2, spacing=(1.5, 0.5))
    profile = replace(ABSOLUTE, foreground=1.0, background=1.0, boundary=0.9)
    band = reference.band
    for seed in range(4):
        wrong = answer(reference, profile, "boundary_bias", seed) != labels
        assert abs(int(wrong.sum()) - 0.1 * int(band.sum())) < 1
        # 0.5 mm from the border between columns; the border between rows is farther away.
        assert wrong[:18, 29:31].float().mean() > 0.45
        assert not wrong[18:22, :20].any()


@pytest.mark.parametrize("model", ["correlated", "boundary_bias"])
def test_ignored_voxels_do_not_use_up_the_errors_of_a_region(answer, model):
    labels = nested((80, 80), 2)
    labels[:, :30] = 2
    reference = reference_of(labels, 2, ignore_label=2)
    wrong = (answer(reference, ABSOLUTE, model) != reference.labels) & reference.valid
    assert abs(int(wrong[reference.band].sum()) - int(reference.band.sum()) * 0.3) < 1
    if model == "correlated":
        inside = (labels == 1) & ~reference.band
        assert abs(int(wrong[inside].sum()) - int(inside.sum()) * 0.2) < 1
