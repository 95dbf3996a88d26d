"""Prediction for image files and folders."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from timm.data import create_transform, resolve_input_data_config

from iformer.common.images import read_image
from iformer_command.terminal import ITEM_ERRORS, item_error


def classify(model: Any, paths: Sequence[str | Path], top: int = 5, batch_size: int = 32) -> list[dict[str, Any]]:
    """Return :func:`predictions` of all files."""
    return list(predictions(model, paths, top, batch_size))


@torch.inference_mode()
def predictions(
    model: Any, paths: Sequence[str | Path], top: int = 5, batch_size: int = 32
) -> Iterator[dict[str, Any]]:
    """The most probable classes of image files, with the preprocessing that the model's configuration states.

    Shows its progress on standard error where there is more than one batch.

    Args:
        model: A timm model in evaluation mode.
        paths: Image files.
        top: How many classes to name.
        batch_size: Images at a time.

    Yields:
        For each file ``{"image": path, "classes": [{"name": ..., "probability": ...}, ...]}``, most probable first; or
        ``{"image": path, "error": message}`` for a file that could not be read, or not be made
        into what the model takes.
    """
    config = resolve_input_data_config(model)
    transform = create_transform(**config, is_training=False)
    names = model.pretrained_cfg.get("label_names")
    results: list[dict[str, Any]] = [{"image": str(path)} for path in paths]
    batches = [results[start : start + batch_size] for start in range(0, len(results), batch_size)]
    for batch in track(batches, "Classifying", console=Console(stderr=True), disable=len(batches) < 2):
        images, readable = [], []
        for result in batch:
            try:
                images.append(transform(read_image(result["image"], channels=config["input_size"][0])))
                readable.append(result)
            except ITEM_ERRORS as error:
                result["error"] = item_error(result["image"], error)
        found = model(torch.stack(images)).softmax(-1) if images else ()
        for result, probabilities in zip(readable, found, strict=True):
            best = probabilities.topk(min(top, len(probabilities)))
            result["classes"] = [
                {"name": names[index] if names else f"class {index}", "probability": round(value, 4)}
                for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        yield from batch
