"""Simulated experts: profiles, image zones, error models and transforms for the data loader."""
