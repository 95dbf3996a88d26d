"""The Inception Transformer, its presets, and everything that loads and saves models."""
