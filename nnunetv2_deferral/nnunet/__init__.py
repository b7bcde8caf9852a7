"""All that knows nnU-Net: its trainers, plans, predictor and folders.

- `managers`: plans and label managers that know of the deferral channels and travel into nnU-Net's worker processes.
- `trainer`: the training. `optimizer`, `transforms`, `progress` and `pretrained` are its parts.
- `naming`: how a trainer's name says what it is.
- `rater_data` and `rater_transform`: the masks of raters as training data.
- `export`: from logits to masks and deferral maps. `case_geometry` takes arrays back to the image.
- `hooks`: the names in nnU-Net that are replaced, all of them in one place.
- `validation`: the summary after the final validation.
- `experiment`: where nnU-Net keeps datasets, splits and trained models.
"""
