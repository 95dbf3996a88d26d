"""Image classification: data and task."""
