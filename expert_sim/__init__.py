"""Simulated experts: their profiles, the regions of an image, error models and the data loader's transforms."""
