"""Prediction from image files to results, beside the same network alone on images that are prepared already.

Both go through the predictor of the model's task, as ``iformer predict`` does without pictures: once with files that
are read, decoded and prepared ahead, and once with prepared images in memory, where only the network's time counts.
"""

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from iformer.benchmark.configurations import Configuration, is_function, open_model
from iformer.benchmark.rounds import in_rounds
from iformer.common.batches import batches
from iformer.common.images import find_images, read_image
from iformer.models.prediction import TYPES, Options, predictions, predictor
from iformer.models.saved import Model

IN_MEMORY = 256
"""The most prepared images that the network alone is measured on, evenly spread over all of them."""


def files(folder: Path, chosen: Sequence[Configuration]) -> list[Path]:
    """Return the image files of a folder, after checking that prediction can be measured on them.

    Raises:
        ValueError: The folder has no images, one of them is unreadable, no configuration is of the eager engine, or a
            model is only a function that returns a network.
        OSError: The folder does not exist.
    """
    found = find_images([folder])
    measured = [each.model for each in chosen if _in_pytorch(each)]
    if not measured:
        raise ValueError("images: predict computes in PyTorch, expected eager among the engines")
    if bare := [model for model in measured if is_function(model)]:
        raise ValueError(f"images: {bare[0]} does not say how its images are prepared; leave it or the images out")
    for file in found:
        read_image(file)
    return found


def run(chosen: Sequence[Configuration], files: Sequence[Path], workers: int, rounds: int) -> list[dict[str, Any]]:
    """Measure the prediction of image files in interleaved rounds, for each configuration of the eager engine.

    Args:
        chosen: The configurations; those of other engines are passed over.
        files: The image files, all of which can be read.
        workers: The number of threads that read files ahead.
        rounds: The number of rounds, in each of which all files are predicted once.

    Returns:
        For each configuration its ``model``, ``task``, ``precision`` and ``batch``, ``workers``, the number of
        ``images``, ``images_per_second`` from the files to the results, ``network_images_per_second`` of the network
        alone, and ``share_of_network``, the first divided by the second. Medians over the rounds.
    """
    pairs = [Pair(each, files, workers) for each in chosen if _in_pytorch(each)]
    turns = [turn for pair in pairs for turn in (pair.whole, pair.network_alone)]
    for turn in turns:
        turn()  # warm up
    seconds = [statistics.median(times) for times in in_rounds(turns, range(rounds))]
    results = []
    for pair, whole, alone in zip(pairs, seconds[::2], seconds[1::2], strict=True):
        about = {name: getattr(pair.configuration, name) for name in ("model", "task", "precision", "batch")}
        results.append(
            {
                **about,
                "workers": workers,
                "images": len(files),
                "images_per_second": round(1 / whole, 2),
                "network_images_per_second": round(1 / alone, 2),
                "share_of_network": round(alone / whole, 3),
            }
        )
    return results


def _in_pytorch(configuration: Configuration) -> bool:
    return configuration.engine == "eager"


class Pair:
    """The two measurements of a configuration; each returns the seconds that an image takes, in a list of one.

    Args:
        configuration: The configuration, whose engine must be eager.
        files: The image files, all of which can be read.
        workers: The number of threads that read files ahead.
    """

    def __init__(self, configuration: Configuration, files: Sequence[Path], workers: int) -> None:
        self.configuration, self.files = configuration, files
        self.model = described(open_model(configuration.model, configuration.task))
        options = Options(
            batch_size=configuration.batch,
            output=None,
            device=configuration.device,
            precision=configuration.precision,
            workers=workers,
        )
        self.predictor = predictor(self.model, options)
        few = files[:: -(-len(files) // IN_MEMORY)]
        read = batches(few, self.predictor.prepare, self.model.channels, len(few))
        self.prepared = [sample.image for sample in itertools.chain(*read)]
        self.inside = 0.0
        self.model.network.register_forward_pre_hook(self._start)
        self.model.network.register_forward_hook(self._stop)

    def whole(self) -> list[float]:
        """Predict all files."""
        start = time.perf_counter()
        count = sum(1 for _ in predictions(self.model, self.predictor, self.files))
        return [(time.perf_counter() - start) / count]

    @torch.inference_mode()
    def network_alone(self) -> list[float]:
        """Run the network on prepared images."""
        self.inside = 0.0
        dtype, size = TYPES[self.configuration.precision], self.predictor.batch_size
        for first in range(0, len(self.prepared), size):
            images = self.prepared[first : first + size]
            with torch.autocast(self.configuration.device, dtype, enabled=dtype != torch.float32):
                self.predictor.predict([Path(str(first + place)) for place in range(len(images))], images)
        return [self.inside / len(self.prepared)]

    def _start(self, *call: Any) -> None:
        self._wait()
        self.inside -= time.perf_counter()

    def _stop(self, *call: Any) -> None:
        self._wait()
        self.inside += time.perf_counter()

    def _wait(self) -> None:
        if self.configuration.device == "cuda":
            torch.cuda.synchronize()


def described(model: Model) -> Model:
    """Return a model with numbers for class names where it has none, so that predictors can describe what they find."""
    if model.config:
        return model
    names = tuple(f"class {number}" for number in range(1, 151))
    config: dict[str, Any] = {"class_names": names, "category_ids": list(range(1, 151)), "palette": [[0] * 3] * 150}
    config |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    return replace(model, class_names=names, config=config)
