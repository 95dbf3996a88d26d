"""iFormer, the Inception Transformer (NeurIPS 2022). Importing this package registers its models with timm."""

from iformer.models import presets as presets

__version__ = "0.2.0"
