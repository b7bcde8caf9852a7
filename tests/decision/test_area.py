"""A voxel is worth what putting it right adds to Dice."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import ndimage
from scipy.special import ndtr

from nnunetv2_deferral import arrays
from nnunetv2_deferral.decision.area import VoxelWeight, dice_weight
from nnunetv2_deferral.decision.decide import decide
from nnunetv2_deferral.decision.limits import Limits
from nnunetv2_deferral.evidence.expected_dice import SMALLEST_AREA
from nnunetv2_deferral.routing import OneVsAllRule

REGIONS = ((1, 2), (2,))  # nested


def mean_dice(model, reference, classes):
    pairs = [(np.isin(model, each), np.isin(reference, each)) for each in classes]
    return np.mean([2 * np.sum(a & b) / max(a.sum() + b.sum(), 1) for a, b in pairs])


def probabilities_of(labels, *, certainty=1.0, number=3):
    """float32 (K, *S), with the rest shared by the other classes."""
    own = np.arange(number).reshape(-1, *[1] * labels.ndim) == labels
    return np.where(own, certainty, (1 - certainty) / (number - 1)).astype(np.float32)


def test_a_voxel_is_worth_what_it_changes_in_mean_dice():
    """Missed, false and confused voxels are put right, right ones made worse, one at a time."""
    generator = np.random.default_rng(0)
    reference = np.zeros((40, 50), int)
    reference[4:30, 4:25], reference[4:30, 25:32] = 1, 2
    model = reference.copy()
    for place in generator.integers(1, 38, (40, 2)):
        model[tuple(place)] = generator.integers(3)
    # Where the model errs it says so: the two labels share the probability, with hardly more on the model's.
    probabilities, wrong = probabilities_of(model), model != reference
    for label, share in ((model, 0.501), (reference, 0.499)):
        np.put_along_axis(probabilities, label[None], np.where(wrong, np.float32(share), 1)[None], axis=0)
    weight = dice_weight(probabilities, has_regions=False)
    assert weight.right.shape == weight.wrong.shape == reference.shape
    assert weight.right.dtype == weight.wrong.dtype == np.float32
    before = mean_dice(model, reference, (1, 2))
    for voxel in (*np.argwhere(wrong), *generator.permutation(np.argwhere(~wrong))[:60]):
        place, changes = tuple(voxel), []
        for label in [reference[place]] if wrong[place] else {0, 1, 2} - {model[place]}:
            changed = model.copy()
            changed[place] = label
            changes.append(mean_dice(changed, reference, (1, 2)) - before)
        found = weight.right[place] if wrong[place] else -weight.wrong[place]
        assert found == pytest.approx(np.mean(changes), rel=0.05)


def test_missed_voxels_of_a_bad_mask_are_worth_much_and_false_ones_little():
    inside = np.full((20, 20), 0.05, dtype=np.float32)
    inside[:4, :5], inside[4:8, :5] = 0.6, 0.4
    weight = dice_weight(np.stack([1 - inside, inside]), has_regions=False)
    expected, predicted = inside.sum(), 20
    dice = 2 * 0.6 * 20 / (expected + predicted)
    missed, false = (2 - dice) / (expected + predicted), dice / (expected + predicted)
    assert weight.right[:4, :5] == pytest.approx(np.full((4, 5), false))
    assert weight.wrong[:4, :5] == pytest.approx(np.full((4, 5), missed))
    assert weight.right[4:] == pytest.approx(np.full((16, 20), missed))
    assert weight.wrong[4:] == pytest.approx(np.full((16, 20), false))


def test_where_nothing_is_predicted_the_worth_is_that_of_the_first_voxels():
    inside = np.full((30, 30), 0.1, dtype=np.float32)
    weight = dice_weight(np.stack([1 - inside, inside]), has_regions=False)
    assert weight.right == pytest.approx(np.full((30, 30), 2 / 90), rel=1e-5)
    assert not weight.wrong.any()  # no Dice is left to lose


def test_where_hardly_anything_is_expected_the_worth_is_bounded():
    nothing = probabilities_of(np.zeros((3, 3), int), number=2)
    assert dice_weight(nothing, has_regions=False).right == pytest.approx(np.full((3, 3), 1 / SMALLEST_AREA))
    one = probabilities_of(np.eye(3, dtype=int), number=2)
    weight = dice_weight(one, has_regions=False)
    assert np.unique(weight.right) == pytest.approx([0.5 / SMALLEST_AREA])


def test_a_border_between_two_classes_counts_for_both():
    labels = np.zeros((20, 40), int)
    labels[:, 5:15], labels[:, 15:30] = 1, 2
    probabilities = probabilities_of(labels)
    probabilities[:, 10, 15] = 0.0, 0.4, 0.6  # between the two
    probabilities[:, 10, 29] = 0.4, 0.0, 0.6  # between the second and the background
    weight = dice_weight(probabilities, has_regions=False)
    assert weight.right[10, 15] == pytest.approx((1 / 400 + 1 / 600) / 2, rel=0.01)
    assert weight.right[10, 29] == pytest.approx(1 / 600 / 2, rel=0.01)


def test_where_all_is_certain_every_other_class_is_as_probable():
    labels = np.zeros((10, 40), int)
    labels[:, 10:20], labels[:, 20:40] = 1, 2
    weight = dice_weight(probabilities_of(labels), has_regions=False)
    assert weight.right[:, :10] == pytest.approx(np.full((10, 10), (1 / 200 + 1 / 400) / 2 / 2))
    assert weight.right[:, 10:20] == pytest.approx(np.full((10, 10), (1 / 200 + 1 / 400 / 2) / 2))


@pytest.mark.parametrize("has_regions", [False, True])
def test_chunks_make_no_difference(has_regions, monkeypatch):
    logits = np.random.default_rng(0).normal(0, 4, (3, 7, 6, 5))
    probabilities = (1 / (1 + np.exp(-logits)) if has_regions else np.exp(logits) / np.exp(logits).sum(0)).astype("f4")
    whole = dice_weight(probabilities, has_regions=has_regions)
    monkeypatch.setattr(arrays, "CHUNK_VALUES", 20)
    for one, other in zip(dice_weight(probabilities, has_regions=has_regions), whole, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
        assert (one > 0).all()


def test_one_region_is_as_one_class():
    inside = np.random.default_rng(0).random((9, 8)).astype(np.float32)
    as_class = dice_weight(np.stack([1 - inside, inside]), has_regions=False)
    for one, other in zip(dice_weight(inside[None], has_regions=True), as_class, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_one_weight_is_both():
    weight = VoxelWeight.of(0.5)
    assert weight.right == weight.wrong == np.float32(0.5)
    assert VoxelWeight.of(weight) is weight


@dataclass
class Border:
    """Signed distances in units of the uncertainty, positive inside: of the foreground, and of class 2 within it."""

    outer: np.ndarray
    inner: np.ndarray | None = None
    share: float = 0.005  # of the voxels are asked about

    @property
    def probabilities(self):
        """float32 (K, *S), calibrated."""
        inside = ndtr(self.outer)
        if self.inner is None:
            return np.stack([1 - inside, inside]).astype(np.float32)
        second = ndtr(self.inner)
        return np.stack([1 - inside, inside * (1 - second), inside * second]).astype(np.float32)

    def draw(self, generator):
        """Two references: smooth fields move the borders, in the second the other way."""
        outer, inner = (self._field(generator) for _ in range(2))
        for sign in (1, -1):
            inside = self.outer + sign * outer > 0
            yield inside * (1 if self.inner is None else 1 + (self.inner + sign * inner > 0))

    def _field(self, generator):
        noise = ndimage.gaussian_filter(generator.normal(size=self.outer.shape), 1.5, mode="wrap", truncate=3)
        return noise / noise.std()


def ball(shape, centre, radius):
    """Signed distance from the surface in voxels, positive inside."""
    return radius - np.linalg.norm(np.indices(shape) - np.reshape(centre, (-1, *[1] * len(shape))), axis=0)


def halves(shape, middle):
    """Signed distance from a plane across the last axis."""
    return np.indices(shape)[-1] - middle


FLAT, SOLID = (96, 96), (16, 40, 40)
BORDERS = {
    "good": Border(ball(FLAT, (48, 48), 28) / 2),
    "bad": Border(ball(FLAT, (48, 48), 14) / 9),
    "nothing predicted": Border(ball(FLAT, (48, 48), 14) / 9 - 1.6, share=0.001),
    "small objects": Border(np.maximum(ball(FLAT, (30, 30), 6), ball(FLAT, (70, 60), 4)) / 2, share=0.001),
    "3D": Border(ball(SOLID, (8, 20, 20), 7) / 1.5),
    "two classes": Border(ball(FLAT, (48, 48), 28) / 2, halves(FLAT, 48) / 4),
    "two classes, bad": Border(ball(FLAT, (48, 48), 20) / 6, halves(FLAT, 52) / 8),
    "two classes, one border": Border(np.full(FLAT, 4.0), halves(FLAT, 48) / 4),
    "two classes, 3D": Border(ball(SOLID, (8, 20, 20), 7) / 2, halves(SOLID, 18) / 4),
}


@pytest.mark.parametrize(
    ("kind", "has_regions"),
    [*((kind, False) for kind in BORDERS), *((kind, True) for kind in BORDERS if kind.startswith("two"))],
)
def test_the_gain_that_is_promised_is_the_gain_on_average(kind, has_regions):
    """Against references drawn from calibrated probabilities and an expert who is right in nine of ten voxels."""
    border, generator = BORDERS[kind], np.random.default_rng(0)
    classes = border.probabilities
    model, number = classes.argmax(0), len(classes)
    scored = REGIONS if has_regions else tuple((label,) for label in range(1, number))
    softmax = np.stack([classes[1] + classes[2], classes[2]]) if has_regions else classes
    if has_regions:
        model = (softmax[0] > 0.5).astype(int) + (softmax[1] > 0.5)
    right = np.stack([np.take_along_axis(classes, model[None], axis=0)[0], np.full(model.shape, 0.9, np.float32)])
    made, statistics, *_ = decide(
        right,
        dice_weight(softmax, has_regions=has_regions),
        rule=OneVsAllRule((0.0,), (True,)),
        limits=Limits(budget=border.share),
    )
    asked, changes = made.route > 0, []
    for reference in (each for _ in range(30) for each in border.draw(generator)):
        errs = generator.random(np.count_nonzero(asked)) >= 0.9
        system = model.copy()
        system[asked] = (reference[asked] + errs * generator.integers(1, number, errs.size)) % number
        changes.append(mean_dice(system, reference, scored) - mean_dice(model, reference, scored))
    assert 0.9 < statistics["expected_gain"] / np.mean(changes) < 1.15
