"""The folder for `nnUNet_extTrainer`."""
