"""Figures and HTML reports of evaluations and benchmarks."""
