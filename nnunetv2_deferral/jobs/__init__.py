"""Prediction, evaluation and worklist of many cases, in parts that run as jobs of this machine or of a cluster."""
