"""The main job: train iFormer on Fashion-MNIST on this machine and report, in about five minutes on two cores."""

import json
import logging
import platform
import shlex
import signal
import sys
import tempfile
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from torchmetrics.functional.classification import multiclass_confusion_matrix

from iformer.classification.fashion_mnist import FashionMNISTData
from iformer.classification.task import ClassificationTask
from iformer.common import pages, plotting
from iformer.frequency import figures as frequency_figures
from iformer.frequency.analyze import explain
from iformer.frequency.inputs import open_model
from iformer.frequency.measurement import measure
from iformer.models import saved
from iformer.training.callbacks import ImagesPerSecond, ProgressBar
from iformer.training.optimization import AdamWCosine

MODEL = "iformer_nano"
STUDIED = 1000  # test images whose frequencies are measured: some three seconds


def run(output: Path, data_dir: Path, epochs: int, seed: int = 0, limit: int | None = None) -> dict[str, Any]:
    """Train, test and report; returns what ``summary.json`` holds.

    Leaves in ``output`` the checkpoint (``config.json``, ``model.safetensors``), ``summary.json``, ``metrics.csv``, the
    figures and ``report.html``. Ctrl-C ends the training early; what has been trained is saved, tested and reported.

    Args:
        output: Made if it is not there; what a run before left in it is replaced.
        data_dir: Where Fashion-MNIST is, or is to be fetched to.
        epochs: Passes over the training images.
        seed: Of initial weights, order and augmentation.
        limit: Use only so many training and test images.

    Raises:
        OSError: ``output`` cannot be written, or the data cannot be fetched.
        ValueError: A file of the data is damaged.
    """
    _require_writable(output)
    _quieten()
    lightning.seed_everything(seed, verbose=False)
    data = FashionMNISTData(data_dir, limit=limit)
    data.prepare_data()
    data.setup()
    task = ClassificationTask(
        MODEL,
        num_classes=len(data.class_names),
        model_args={"in_chans": 1, "img_size": 28},
        label_smoothing=0.0,
        optimization=AdamWCosine(3e-3, min_lr=3e-5, base_batch=None, warmup_epochs=0.1 * epochs, per="step"),
    )
    model = task.model
    rate = ImagesPerSecond()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        logger=CSVLogger(output, name="", version=""),
        callbacks=[ProgressBar(), rate],
        enable_checkpointing=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
    )
    started = time.perf_counter()
    completed = _fit(trainer, task, data)
    saved.save(model, output, data.class_names, **data.data_config)
    probabilities = torch.cat(trainer.predict(task, data.test_dataloader()))  # type: ignore[arg-type]
    images, labels = data.test
    summary = {
        "accuracy": (probabilities.argmax(1) == labels).double().mean().item(),
        "loss": F.nll_loss(probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log(), labels).item(),
        "completed": completed,
        "steps": trainer.global_step,
        "seconds": round(time.perf_counter() - started, 1),
        "images_per_second": round(rate.rate),
        "epochs": epochs,
        "seed": seed,
        "training_images": len(data.train[1]),
        "test_images": len(labels),
        "model": MODEL,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "versions": {name: version(name) for name in ("iformer-inception", "torch", "timm", "lightning")},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "command": shlex.join(["iformer", *sys.argv[1:]]),
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    confusion = multiclass_confusion_matrix(probabilities, labels, len(data.class_names))
    figures = {
        "Training curve": plotting.training_curve(output / "metrics.csv"),
        "Confusion matrix": plotting.confusion_matrix(confusion.numpy(), data.class_names),
        "Right predictions, and the most confident wrong ones": plotting.prediction_grid(
            images[:, 0].numpy(), labels.numpy(), probabilities.numpy(), data.class_names
        ),
    }
    names = ["training_curve", "confusion_matrix", "predictions", "branch_spectra", "high_frequency_shares", "grad_cam"]
    figures |= _what_it_sees(output, data)
    for name, figure in zip(names, figures.values(), strict=True):
        figure.savefig(output / f"{name}.png", dpi=160)
    pages.write_report(
        output / "report.html",
        title=f"{MODEL} on Fashion-MNIST: {summary['accuracy']:.2%} of {len(labels):,} test images right",
        note="" if completed else "The training was interrupted; these are the results of what it had reached.",
        summary={key.replace("_", " "): _readable(value) for key, value in summary.items()},
        figures=figures,
        usage=f"iformer predict IMAGE... --checkpoint {shlex.quote(str(output))}",
    )
    return summary


def _fit(trainer: lightning.Trainer, task: ClassificationTask, data: FashionMNISTData) -> bool:
    """Train; whether to the end. Lightning shuts down by itself after Ctrl-C and then exits, which this catches."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(task, datamodule=data)
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
    return not trainer.interrupted


def _what_it_sees(folder: Path, data: FashionMNISTData) -> dict[str, Figure]:
    """Figures of the frequencies in the trained model's branches, and of its evidence for what it predicts."""
    model = open_model(str(folder))
    images = data.normalize(data.test[0][:STUDIED])
    stages = measure(model.network, images.split(data.batch_size)).stages()
    return {
        "Frequencies that the three branches return (the paper's Fig. 4)": frequency_figures.branch_spectra(stages),
        "What each branch does to the share of high frequencies": frequency_figures.branch_shares({MODEL: stages}),
        "Where it sees what it predicts (Grad-CAM)": frequency_figures.class_activation(
            {MODEL: explain(model, images[:6])}
        ),
    }


def _require_writable(folder: Path) -> None:
    """Raise OSError now rather than after five minutes."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"0" * 2**24)  # about what a run leaves behind


def _quieten() -> None:
    """Silence what Lightning says to people who configure it themselves."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Experiment logs directory.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")


def _readable(value: Any) -> str:
    """A value of the summary as people read it."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
