"""What was measured of the model in a run's folder: ``evaluations.json``, from which its card is made.

It has an entry for each of ``training``, ``validation`` and ``test`` that took place, with the metrics and where they
come from: the number of images, the command, the seed, the versions and the machine. Of a test it says too, as
``has_test``, whether its images are others than those of the validation; null if the data does not tell.
"""

from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.strategies import FSDPStrategy
from safetensors import SafetensorError
from safetensors.torch import load_file

from iformer.common.files import read_json, write_json
from iformer.models import model_card
from iformer.training import checkpoints
from iformer.training.run_folder import RunRecord


def record_training(folder: Path, trainer: Trainer, results: Mapping[str, Any]) -> None:
    """Write ``evaluations.json`` and the card after ``fit`` has exported a model into the run's folder.

    Args:
        folder: The run's folder.
        trainer: The trainer of the run.
        results: The metrics of the run and their provenance.

    Raises:
        OSError: A file could not be written.
        ValueError: The metadata of the card, which a user may have edited, are not valid.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    run = next(each for each in callbacks if isinstance(each, RunRecord))
    earlier, steps = read_json(folder / model_card.EVALUATIONS), trainer.global_step
    resumed_at_its_end = run.resumed and run.began in (None, steps)
    if not resumed_at_its_end or earlier.get("training", {}).get("steps") != steps:
        keeps_best = any(isinstance(each, checkpoints.RunCheckpoint) and each.best for each in callbacks)
        best = read_json(folder / "best.json") if keeps_best else {}
        training = {
            "images": _images(trainer.train_dataloader, trainer.limit_train_batches),
            "epochs": trainer.current_epoch,
            "steps": steps,
            "best_steps": best.get("step"),
            **_source(results),
        }
        validation = {"metrics": _of_stage(results["metrics"], "val"), "steps": run.validated}
        if best:  # of the best validation only the main metric is known
            validation = {"metrics": {best["metric"].removeprefix("val_"): best["value"]}, "steps": best["step"]}
        images = _images(trainer.val_dataloaders, trainer.limit_val_batches)
        found = {"validation": {"images": images, **validation, **_source(results)}} if validation["steps"] else {}
        write_json(folder / model_card.EVALUATIONS, {"training": training, **found})
    model_card.write(folder)


def _source(results: Mapping[str, Any]) -> dict[str, Any]:
    return {key: results[key] for key in ("command", "seed", "versions", "python", "machine")}


def record_evaluation(folder: Path, verb: str, trainer: Trainer, network: Any, results: Mapping[str, Any]) -> None:
    """Add the figures of ``validate`` or ``test`` to the card, if they are those of the folder's model.

    Args:
        folder: The run's folder. If it holds no model, or one with other weights, nothing is written.
        verb: ``validate`` or ``test``.
        trainer: The trainer that has evaluated.
        network: The network that was evaluated.
        results: The metrics and their provenance.

    Raises:
        OSError: A file could not be written.
        ValueError: The metadata of the card, which a user may have edited, are not valid.
    """
    if isinstance(trainer.strategy, FSDPStrategy) or not _is_saved(network, folder):  # of shards none is whole
        return
    loaders, limit = {
        "validate": (trainer.val_dataloaders, trainer.limit_val_batches),
        "test": (trainer.test_dataloaders, trainer.limit_test_batches),
    }[verb]
    has_test = getattr(getattr(trainer, "datamodule", None), "has_test", None)
    stage = "test" if verb == "test" and has_test is not False else "validation"
    metrics = _of_stage(results["metrics"], verb.removesuffix("idate"))
    found = {"images": _images(loaders, limit), "metrics": metrics, **_source(results)}
    if stage == "test":
        found["has_test"] = has_test
    write_json(folder / model_card.EVALUATIONS, {**read_json(folder / model_card.EVALUATIONS), stage: found})
    model_card.write(folder)


def _is_saved(network: Any, folder: Path) -> bool:
    """Return whether a folder holds a model with the weights of ``network``."""
    file = folder / "model.safetensors"
    if not file.is_file() or not (folder / "config.json").is_file():
        return False
    try:
        saved = load_file(file)
    except SafetensorError:
        return False
    weights = {key: value.cpu() for key, value in network.state_dict().items()}
    return weights.keys() == saved.keys() and all(
        weights[key].dtype == saved[key].dtype and torch.equal(weights[key], saved[key]) for key in saved
    )


def _of_stage(metrics: Mapping[str, float], stage: str) -> dict[str, float]:
    """Return the metrics of ``val`` or ``test`` without these words, without the speed and those with nothing to count.

    COCO's AP is -1 where there are no such objects, and a mean over no labels is not a number.
    """
    found = {name.removeprefix(f"{stage}_"): value for name, value in metrics.items() if name.startswith(f"{stage}_")}
    return {name: value for name, value in found.items() if name != "images/s" and value >= 0}


def _images(loader: Any, limit: Any) -> int | None:
    """Return the number of images of a loader; None if it does not know, or if not all were used.

    Args:
        loader: The loader.
        limit: Lightning's limit: a share as a float, or a number of batches as an int.
    """
    dataset = getattr(loader, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) and isinstance(limit, float) and limit == 1 else None
