"""Image classification: data, training and prediction."""
