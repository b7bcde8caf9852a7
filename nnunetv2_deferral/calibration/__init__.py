"""Calibration: fitting of calibrators and budget thresholds on validation cases."""
