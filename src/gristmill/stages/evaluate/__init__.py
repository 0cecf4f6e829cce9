"""Evaluation: metrics with intervals, comparisons, gates and the model card."""
