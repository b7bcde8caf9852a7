"""Numbers and names that are both defaults and part of the commands' help, which must not import what uses them."""

from __future__ import annotations

BUDGETS = (0.005, 0.01, 0.02, 0.05, 0.1)
"""Shares of the voxels at which rankings are compared."""

FOLDS = 5
"""Of a cross-validation, as nnU-Net's."""

CONFIDENCE = 0.9
"""Confidence of a certificate."""

BOUNDARY_WIDTH = 2
"""Depth of the band on each side of a label change where an expert's boundary accuracy holds, in voxels."""

TYPICAL_BORDER_CM = 50.0
"""Border of a typical edit: `measurements/typical_edit.py`."""

MINUTES_PER_REGION, MINUTES_PER_CM = 0.15, 2 / TYPICAL_BORDER_CM
"""Working time for a look at a region, and for drawing a cm of border, so that a typical edit takes two minutes."""

PLANNER, PLANNER_KINDS = "nnUNetPlannerDeferral", ("ResEncM", "ResEncL", "ResEncXL", "CPU")
"""The planner of `nnUNetv2_deferral_plan_experiment`, and what others have after its name."""

CONVERTED_DATASETS = ("chaksu", "promise12", "lits", "amos22")
"""The published datasets that can be converted."""

AMOS22_TASKS = (1, 2)
"""1 for CT only, 2 for CT and MRI."""

PORT = 8765
"""Of the review page, on 127.0.0.1."""

READING_MEASURES, MAX_DIFFERENCE = ("voxels", "dice"), 0.1
"""How two readers of a region are compared, and the largest difference of readers who agree."""

SHIFT_KINDS = ("bias_field", "noise", "ghosting", "blur", "downsample", "gamma")
"""The kinds of synthetic shifts of images."""

SHUFFLE = "shuffle"
"""No shift that a scanner makes: an image without its structures, as a check."""

OWN_DOMAIN = "ID"
"""The name of the domain that a model was trained in."""

QUERY_STRATEGIES = ("claspe", "entropy", "random", "random_foreground", "gain")
"""How boxes to annotate are chosen."""

QUERY_UNITS = ("patch", "region", "case")
"""What is asked about: boxes of one size, the boxes of deferred regions, or whole cases."""

QUERY_ROUNDS, QUERY_EDGE_VOXELS = 5, 20
"""Rounds of queries, over which noise decays, and the edge of a box."""

ANNOTATOR = "annotator"
"""The expert who is asked about boxes, if no model says whom to ask."""

DICOM_OBJECTS, DICOM_KINDS = ("mask", "review", "probability", "gain"), ("binary", "labelmap", "fractional")
"""What is exported of a prediction as DICOM, and the types of the mask's segmentation."""

DICOM_PREFIX, DICOM_ENDINGS = "dcm", (".nii.gz", ".nii", ".nrrd", ".mha")
"""First part of the names of imported cases, and the formats that they can have."""

ROUTE = "route"
MAPS = (ROUTE, "probability", "expert", "gain")
"""The maps of a case, of which the route is always written."""

AGGREGATED = "aggregated"
"""A further map, of models with an aggregated deferral predictor, written on request and in final validations."""

MEASURED_BY = ("probability", "gain")
"""The maps by which the minutes and the expected gain of a region are measured."""
