"""Scoring a system of model and experts."""
