"""The main job: train iFormer on Fashion-MNIST on this machine, test it and report."""

import csv
import json
import shlex
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from iformer.classification.fashion_mnist import FashionMNISTData, fetch_fashion_mnist
from iformer.common import pages, plotting
from iformer.common.files import write_json
from iformer.common.provenance import provenance
from iformer.frequency import figures as frequency_figures
from iformer.frequency.analyze import explain
from iformer.frequency.measurement import measure
from iformer.models import saved
from iformer.models.backbone import create
from iformer.models.saved import Model
from iformer.training import checkpoints, launcher
from iformer.training.run_folder import locked

RECIPE, MODEL = "fashion_mnist", "iformer_nano"
SAVED_EVERY = 100  # optimiser steps: some twenty seconds
STUDIED = 1000  # test images whose frequencies are measured: some three seconds


def run(output: Path, data_dir: Path, epochs: int, seed: int = 0, limit: int | None = None) -> dict[str, Any]:
    """Train by the recipe ``fashion_mnist``, test and report.

    Leaves in ``output`` what every run leaves there, and ``summary.json``, the figures and ``report.html``. Ctrl-C ends
    the training early; the newest checkpoint is then tested and reported. A demo that was interrupted or killed goes on
    when it is run again; what one that had ended left is replaced.

    Args:
        output: The run's folder, made if it is not there.
        data_dir: The folder of Fashion-MNIST, which is fetched if it is not there.
        epochs: Passes over the training images.
        seed: The seed of initial weights, order and augmentation.
        limit: Use only so many training and test images.

    Returns:
        What ``summary.json`` holds.

    Raises:
        OSError: ``output`` cannot be written, or the data cannot be fetched.
        ValueError: A file of the data is damaged.
        KeyboardInterrupt: Ctrl-C before there was anything to keep.
    """
    _require_writable(output)
    fetch_fashion_mnist(data_dir)
    _forget_ended(output)
    settings = {
        "trainer.default_root_dir": output,
        "trainer.max_epochs": epochs,
        "seed_everything": seed,
        "data.init_args.data_dir": data_dir,
        "data.init_args.limit": "null" if limit is None else limit,
        "model.init_args.optimization.warmup_epochs": 0.1 * epochs,
        "checkpoint.every_n_steps": SAVED_EVERY,
    }
    arguments = ["--config", RECIPE, *(f"--{key}={value}" for key, value in settings.items())]
    started = time.perf_counter()
    completed = _fit([*arguments, *(["--resume"] if checkpoints.available(output) else [])])
    if not completed and not checkpoints.available(output):
        raise KeyboardInterrupt
    newest = checkpoints.newest(output)
    data = FashionMNISTData(data_dir, limit=limit)
    data.setup()
    if not completed:
        network = create(MODEL, str(newest), num_classes=len(data.class_names), in_chans=1, img_size=28)
        saved.save(network, output, data.class_names, **data.data_config)
    tested = launcher.run("test", [*arguments, "--resume", "--verbose=false"])["metrics"]
    model = saved.resolve(output)
    summary = {
        "accuracy": tested["test_accuracy"],
        "loss": tested["test_loss"],
        "completed": completed,
        "steps": int(newest.stem.partition("-")[2]),
        "seconds": round(time.perf_counter() - started, 1),
        "images_per_second": _last(output / "metrics.csv", "images/s"),
        "epochs": epochs,
        "training_images": len(data.train[1]),
        "test_images": len(data.test[1]),
        "model": MODEL,
        "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
        **provenance(seed),
    }
    write_json(output / "summary.json", summary)
    _report(output, summary, _figures(output, model, data))
    return summary


def _forget_ended(output: Path) -> None:
    """Remove the checkpoints of an earlier demo that had come to its end."""
    summary = output / "summary.json"
    if summary.is_file() and json.loads(summary.read_text()).get("completed"):
        with locked(output):
            shutil.rmtree(output / checkpoints.FOLDER, ignore_errors=True)
            summary.unlink()


def _fit(arguments: list[str]) -> bool:
    """Train, and return whether to the end. Lightning ignores further Ctrl-Cs after the first, which is undone here."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        launcher.run("fit", arguments)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, handler)
        return False
    return True


def _last(metrics: Path, column: str) -> int:
    """Return the last value of a column of ``metrics.csv``; 0 where nothing was logged."""
    with metrics.open() as file:
        values = [float(row[column]) for row in csv.DictReader(file) if row.get(column)]
    return round(values[-1]) if values else 0


def _figures(output: Path, model: Model, data: FashionMNISTData) -> dict[str, tuple[str, Figure]]:
    """Draw the figures of the report: the name of each one's file, with its caption."""
    images, labels = data.test
    normalized = data.normalize(images)
    probabilities = _probabilities(model, normalized)
    confusion = multiclass_confusion_matrix(probabilities, labels, len(data.class_names))
    stages = measure(model.network, normalized[:STUDIED].split(data.batch_size)).stages()
    return {
        "training_curve": ("Training curve", plotting.training_curve(output / "metrics.csv")),
        "confusion_matrix": ("Confusion matrix", plotting.confusion_matrix(confusion.numpy(), data.class_names)),
        "predictions": (
            "Right predictions, and the most confident wrong ones",
            plotting.prediction_grid(images[:, 0].numpy(), labels.numpy(), probabilities.numpy(), data.class_names),
        ),
        "branch_spectra": (
            "Frequencies that the three branches return (the paper's Fig. 4)",
            frequency_figures.branch_spectra(stages),
        ),
        "high_frequency_shares": (
            "What each branch does to the share of high frequencies",
            frequency_figures.branch_shares({MODEL: stages}),
        ),
        "grad_cam": (
            "Where it sees what it predicts (Grad-CAM)",
            frequency_figures.class_activation({MODEL: explain(model, normalized[:6])}),
        ),
    }


@torch.inference_mode()
def _probabilities(model: Model, images: Tensor) -> Tensor:
    return torch.cat([model.network(batch).softmax(-1) for batch in images.split(128)])


def _report(output: Path, summary: dict[str, Any], figures: dict[str, tuple[str, Figure]]) -> None:
    files = {}
    for name, (caption, figure) in figures.items():
        files[caption] = output / f"{name}.png"
        plotting.save_figure(figure, files[caption], dpi=160)
    pages.write_report(
        output / "report.html",
        title=f"{MODEL} on Fashion-MNIST: {summary['accuracy']:.2%} of {summary['test_images']:,} test images right",
        note="" if summary["completed"] else "The training was interrupted; these are the results of what it reached.",
        summary={key.replace("_", " "): _readable(value) for key, value in summary.items()},
        figures=files,
        usage=f"iformer predict IMAGE... --checkpoint {shlex.quote(str(output))}",
    )


def _require_writable(folder: Path) -> None:
    """Raise OSError now rather than after the training."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0" * 2**25)  # about what a run leaves behind


def _readable(value: Any) -> str:
    """Return a value of the summary as people read it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
