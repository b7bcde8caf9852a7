"""The demo: generated data, the whole pipeline, and a report."""
