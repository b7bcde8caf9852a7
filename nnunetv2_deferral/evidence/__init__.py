"""Answers as evidence: what an expert's answer says about a voxel and its surroundings, and what it is worth.

Without evidence the answer of the asked expert replaces the model's label. Here the answer changes a probability
instead. For each *structure* (a class, or a region of region-based training), with the logit L of its probability:

    prior           L from the model's probability at the voxel and around it           :mod:`prior`
    answers         llr = log P(answers | inside) / P(answers | outside)                :mod:`answer_tables`
    neighbourhood   S, how far answers around deviated from what the prior expected     :mod:`neighbourhood`
    posterior       c_0 + c_1 L + c_2 llr + c_3 S, at the voxels that were answered     :mod:`posterior`
    labels          those that are expected to add most to the Dice                     :mod:`expected_dice`
    value           the expected gain in Dice of asking an expert next                  :mod:`value`
    questions       which voxels to ask which expert about, in rounds                   :mod:`questions`

All of it is fitted on validation cases (:mod:`nnunetv2_deferral.calibration`) and stored in the model folder.
"""
