"""Integration with nnU-Net: trainers, plans, predictor and folders.

- `managers`: plans and label managers for deferral channels, also in nnU-Net's worker processes.
- `trainer`: the training. `bases`, `optimizer`, `transforms`, `progress` and `pretrained` are its parts.
- `naming`: trainers' names.
- `rater_data` and `rater_transform`: raters' masks as training data.
- `export`: from logits to masks and deferral maps. `case_geometry` converts arrays back to the image.
- `in_memory`: prediction of arrays.
- `hooks`: all functions of nnU-Net that are replaced.
- `validation`: the summary after the final validation.
- `experiment`: locations of datasets, splits and trained models.
"""
