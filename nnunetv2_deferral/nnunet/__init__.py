"""The one seam with nnU-Net: everything that knows its trainers, plans and predictor lives here.

- `managers`: plans and label managers that know of the deferral channels and travel into nnU-Net's worker processes.
- `trainer`: the training. `optimizer`, `transforms`, `progress` and `pretrained` are its parts.
- `naming`: how a trainer's name says what it is.
- `export`: writing the deferral maps next to the masks.
- `seam`: the names in nnU-Net that are replaced, all of them in one place.
- `validation`: the summary after the final validation.
"""
