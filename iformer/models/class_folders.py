"""The labels of a classifier's images, which stand in folders that are named like its classes."""

from pathlib import Path

from timm.data import ImageNetInfo

from iformer.common.images import find_images
from iformer.models.saved import Model


def class_labels(model: Model, folder: Path) -> list[tuple[Path, int]]:
    """Return the images in a folder's class folders, with the model's labels.

    Raises:
        ValueError: A folder is not named like a class of the model. The message names the folder.
    """
    names = list(model.class_names)
    # As in training, a class consists of all images in its folder and in the folders inside it.
    named = [(path, path.relative_to(folder).parts[0]) for path in find_images([folder])]
    if len(names) == 1000 and not {name for _, name in named} <= set(names):
        names = list(ImageNetInfo().label_names())
    unknown = sorted({name for _, name in named} - set(names))
    if unknown:
        raise ValueError(f"{folder}: {unknown[0]} is not a class of the model, expected folders of {names[:10]}")
    return [(path, names.index(name)) for path, name in named]
