"""Checks of timm's augmentation policies, and a posterize operation that works with every version of Pillow."""

import itertools
import re
from typing import Any

from PIL import Image
from timm.data import auto_augment
from torchvision import transforms

_NUMBER = r"\d+(\.\d+)?"
_NOISE = {"mstd0.5": rf"mstd{_NUMBER}"}
_AUTO_AUGMENT = ("original", "originalr", "v0", "v0r", "3a")

# The settings that may follow the name of each kind of policy: an example for messages, and a pattern. timm ignores
# unknown settings without a digit, and fails at the first image if n is too large.
_SETTINGS = {
    "rand": {
        "m9": r"m\d+",
        "n2": "n([1-9]|1[0-4])",
        "p0.5": r"p(0(\.\d+)?|1(\.0+)?)",
        **_NOISE,
        "mmax10": r"mmax0*[1-9]\d*",
        "inc1": "inc[01]",
        "tweights": "t(weights|3aw?)",
    },
    "augmix": {
        "m3": r"m\d+",
        "w3": r"w[1-9]\d?",
        "d2": r"d\d\d?",
        "a1.0": rf"a(?=.*[1-9]){_NUMBER}",
        "b1": "b[01]",
        **_NOISE,
    },
    **dict.fromkeys(_AUTO_AUGMENT, _NOISE),
}


def check_policy(policy: str) -> None:
    """Raise ValueError if timm's ``auto_augment`` does not know ``policy`` or one of its settings."""
    name, *sections = policy.split("-")
    if name not in _SETTINGS:
        raise ValueError(
            f"auto_augment is {policy!r}, expected {', '.join(_SETTINGS)}, or one of these with settings, "
            "such as rand-m9-mstd0.5-inc1"
        )
    settings = _SETTINGS[name]
    used: set[str] = set()
    for section in sections:
        setting = next((key for key, form in settings.items() if re.fullmatch(form, section, re.ASCII)), None)
        if setting is None:
            raise ValueError(
                f"auto_augment is {policy!r}, but {section!r} is not a setting of {name}, "
                f"expected settings such as {', '.join(settings)}"
            )
        if setting in used:
            raise ValueError(f"auto_augment is {policy!r}, but {section!r} repeats a setting, expected each only once")
        used.add(setting)


def allow_zero_bits(transform: transforms.Compose) -> None:
    """Make the posterize operations in ``transform`` return a black image where they keep no bits.

    RandAugment with noise and AutoAugment's v0 sometimes draw 0 bits. Pillow returned a black image up to version 12,
    and raises an error from version 13 on.
    """
    for step in transform.transforms:
        operations: Any = getattr(step, "ops", None) or itertools.chain(*getattr(step, "policy", ()))
        for operation in operations:
            if getattr(operation, "aug_fn", None) is auto_augment.posterize:
                operation.aug_fn = posterize


def posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """Keep the highest bits of each channel; with 0 or fewer the image is black, with 8 or more it is unchanged."""
    if bits_to_keep <= 0:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep)
