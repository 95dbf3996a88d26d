"""The Inception Transformer and its presets."""

# The end of timm's import registers the presets, which import the modules of this package. Done here, it happens
# before any of them has begun to load.
import timm as timm
