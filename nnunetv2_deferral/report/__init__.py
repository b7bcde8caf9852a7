"""Figures and pages: of an evaluation and of a benchmark."""
