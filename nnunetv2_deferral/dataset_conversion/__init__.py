"""Conversion of published datasets to nnU-Net's raw format, with experts' masks if available."""
