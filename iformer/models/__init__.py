"""The Inception Transformer and its presets."""
