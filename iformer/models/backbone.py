"""timm's models as backbones of detectors and segmenters."""

from typing import Any

import torch
from timm.models import is_model_in_modules

from iformer.models import saved

# timm's models that hold to one image size, but need not.
_SIZED = ("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr")


def feature_maps(name: str, pretrained: bool | str, **arguments: Any) -> Any:
    """A timm model that returns its four coarsest feature maps, of images of any size where it can.

    Args:
        name: timm's.
        pretrained: See :func:`iformer.models.saved.create`.
        arguments: Of the model and of timm's ``features_only``.
    """
    if is_model_in_modules(name, _SIZED):
        arguments = {"strict_img_size": False, **arguments}
    return saved.create(name, pretrained, features_only=True, out_indices=(-4, -3, -2, -1), **arguments)


def refusal(features: Any, height: int, width: int) -> str:
    """Why a backbone does not take images of a size, in its own words; '' if it does."""
    training = features.training
    try:
        with torch.no_grad():
            features.eval()(torch.zeros(1, 3, height, width, device=next(features.parameters()).device))
    except (RuntimeError, AssertionError) as error:
        return (str(error).splitlines() or [""])[0] or type(error).__name__
    finally:
        features.train(training)
    return ""
