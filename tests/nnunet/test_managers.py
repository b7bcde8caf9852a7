"""Label maps of nnU-Net's label manager and of the quicker one."""

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_deferral.nnunet.managers import QuickLabelManager

CLASSES = {"background": 0, "liver": 1, "tumour": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": 2}


@pytest.mark.parametrize(("labels", "order"), [(CLASSES, None), (CLASSES | {"ignore": 3}, None), (REGIONS, [1, 2])])
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy])
def test_the_quicker_one_gives_the_same_label_map(labels, order, convert):
    stock = LabelManager(labels, regions_class_order=order)
    quick = QuickLabelManager.of(stock)
    assert isinstance(quick, QuickLabelManager)
    generator = np.random.default_rng(0)
    logits = generator.integers(-2, 3, (stock.num_segmentation_heads, 4, 9, 11)).astype(np.float32)
    for values in (logits, np.where(generator.random(logits.shape) < 0.05, np.nan, logits)):
        for method in ("convert_logits_to_segmentation", "convert_probabilities_to_segmentation"):
            expected, found = (getattr(each, method)(convert(values)) for each in (stock, quick))
            assert type(found) is type(expected)
            assert np.array_equal(found, expected)


def test_a_wrong_number_of_channels_is_refused_as_by_nnunet():
    quick = QuickLabelManager.of(LabelManager(CLASSES, regions_class_order=None))
    with pytest.raises(AssertionError, match="unexpected number of channels"):
        quick.convert_logits_to_segmentation(np.zeros((4, 2, 2), dtype=np.float32))


def test_a_label_manager_of_the_users_own_stays_as_it_is():
    class Own(LabelManager):
        pass

    own = Own(CLASSES, regions_class_order=None)
    assert QuickLabelManager.of(own) is own
