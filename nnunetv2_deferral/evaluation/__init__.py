"""Evaluation of a system of model and experts."""
