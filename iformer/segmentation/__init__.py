"""Semantic segmentation: data, models and task."""
