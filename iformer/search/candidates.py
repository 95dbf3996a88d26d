"""The networks of all ramps of a search run, and the images that they are judged by."""

import hashlib
from collections.abc import Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from lightning import seed_everything
from torch import Tensor
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from iformer.models import locations
from iformer.models.prediction import find_device
from iformer.models.released import load
from iformer.models.shared_ramps import Ramp, is_shared, set_ramp, share
from iformer.search.costs import ordinary, space_of
from iformer.training import recipes
from iformer.training.data import DataModule
from iformer.training.resumable import seed_from

CALIBRATION = 1024
"""The number of training images from which BatchNorm's statistics are computed for each ramp."""

MOST_KEPT = 1 << 30
"""The bytes of prepared images that are kept in memory; more are read again for each ramp."""


class Candidates:
    """The networks of all ramps of a search run, with the run's shared weights.

    The images are those of the run's recipe: its datamodule says which training images were kept apart for validation.

    Args:
        run: The folder of the run, trained by a recipe such as ``search/cifar10``.
        root: The folder of the data; by default the recipe's.
        device: The device, see :func:`iformer.models.prediction.find_device`.

    Attributes:
        space: The ramps.
        settings: The settings of the run's recipe.
        fingerprint: What tells the weights from others.

    Raises:
        ValueError: The folder is no search run's, its recipe has no data to evaluate with, the data have other classes,
            or there is no such device.
        OSError: A file is missing or cannot be read.
    """

    def __init__(self, run: str | Path, root: str = "", device: str = "auto") -> None:
        self.run = Path(run)
        folder, config = locations.find(run)
        file = folder / "model.safetensors"
        state_dict = load(file) if config["task"] == "classification" else {}
        if not is_shared(state_dict):
            raise ValueError(
                f"{run}: a saved {config.get('architecture', config['task'])}, expected a run of a search recipe, such "
                "as search/cifar10, whose weights all ramps share"
            )
        self.settings = recipes.read(_existing(folder / "recipe.yaml"))
        self.device = find_device(device)
        self.network = share(partial(ordinary, config))
        self.network.load_state_dict(state_dict)
        self.network.to(self.device).to(memory_format=torch.channels_last)
        self.space = space_of(config)
        self.fingerprint = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        self.seed = int(self.settings.get("seed_everything") or 0)
        self.data = _datamodule(self.settings, root, folder / "recipe.yaml", self.seed)
        _require_classes(self.data, config, root or str(folder / "recipe.yaml"))
        self.validation = self._kept(self.data.val_dataloader())
        self._calibration: list[Tensor] = []

    def accuracy(self, ramp: Ramp) -> float:
        """Return the share of the validation images that a ramp classifies correctly."""
        return self._accuracy(ramp, self.validation)

    def test_accuracies(self, ramps: list[Ramp]) -> list[float] | None:
        """Return the shares of test images that ramps classify correctly; None if they are the validation images."""
        if self.data.has_test is False:
            return None
        images = self._kept(self.data.test_dataloader())
        return [self._accuracy(ramp, images) for ramp in ramps]

    def _accuracy(self, ramp: Ramp, batches: Any) -> float:
        set_ramp(self.network, ramp)
        self._calibrate(ramp)
        right = count = 0
        self.network.eval()
        with torch.inference_mode():
            for images, labels in batches:
                images = images.to(self.device, memory_format=torch.channels_last)
                right += int((self.network(images).argmax(1).cpu() == labels.cpu()).sum())
                count += len(labels)
        return right / count

    def _calibrate(self, ramp: Ramp) -> None:
        """Compute BatchNorm's statistics anew for the ramp in force, the same whenever it is evaluated."""
        if not self._calibration:
            loader = self.data.train_dataloader()
            for images, _ in loader:
                self._calibration.append(images.to(self.device, memory_format=torch.channels_last))
                if sum(map(len, self._calibration)) >= CALIBRATION:
                    break
        torch.manual_seed(seed_from(self.seed, *ramp))  # of drop path and dropout, as in training
        update_bn(self._calibration, self.network)

    def _kept(self, loader: DataLoader[Any]) -> Any:
        """Return a loader's batches in memory, if there is room for them, or the loader."""
        channels, height, width = self.space.image
        count = len(getattr(loader, "dataset", ()))
        return [*loader] if count * channels * height * width * 4 <= MOST_KEPT else loader


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file (a search run has the recipe that it was trained by)")
    return file


def _require_classes(data: Any, config: Mapping[str, Any], where: str) -> None:
    """Require that data have the classes that a saved network was trained on, in the same order.

    Raises:
        ValueError: They have others.
    """
    found, expected = list(data.class_names), config.get("label_names")
    if expected is None and len(found) != config["num_classes"]:
        raise ValueError(f"{where}: the data have {len(found)} classes, the run was trained on {config['num_classes']}")
    if expected is not None and found != list(expected):
        one, other = next(pair for pair in zip_longest(found, expected) if pair[0] != pair[1])
        raise ValueError(f"{where}: the data have the class {one} where the run was trained on {other}")


def _datamodule(settings: Mapping[str, Any], root: str, file: Path, seed: int) -> Any:
    """Return the datamodule of a recipe, set up for training and evaluation.

    Raises:
        ValueError: The recipe's data cannot be opened here.
    """
    about = settings.get("data") or {}
    try:
        kind = resolve_name(about.get("class_path", ""))
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{file}: data.class_path is {about.get('class_path')!r}, expected a datamodule") from error
    if not isinstance(kind, type) or not issubclass(kind, DataModule):
        raise ValueError(f"{file}: data.class_path is {about['class_path']}, expected a datamodule")
    seed_everything(seed, verbose=False)  # from which the loaders draw
    data: Any = kind(**{**(about.get("init_args") or {}), **({"root": root} if root else {})})
    data.setup("fit")
    return data
