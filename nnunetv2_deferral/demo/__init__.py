"""The demo: a generated dataset, the whole pipeline on it, and a report."""
