"""The learning rate finder: a range test (Smith, 2017), for ``iformer fit --find_lr``."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning import LightningDataModule, Trainer
from lightning.pytorch.tuner import Tuner
from matplotlib.figure import Figure

from iformer.common.plotting import save_figure
from iformer.training.optimization import scale
from iformer.training.task import Task

STEPS = 100
SKIPPED = 10  # steps at the beginning, whose mean loss is of too few
LOWEST, HIGHEST = 1e-6, 1.0


def find(trainer: Trainer, task: Task, data: LightningDataModule, file: Path) -> dict[str, Any]:
    """Train some steps with a rate that rises from one to the next, and suggest that at which the loss falls fastest.

    Nothing of it stays in the task. All layers have the same rate, whatever ``layer_decay`` says; nothing is frozen;
    and the test ends early where the loss has risen to four times its lowest value.

    Args:
        trainer: The run's trainer.
        task: The task, which is not trained afterwards.
        data: The data.
        file: The file of the picture of the losses, which is written.

    Returns:
        The suggested ``lr`` for the recipe's ``optimization``, which is stated for its ``base_batch``, and the
        ``picture``.

    Raises:
        ValueError: The loss rose after too few steps.
        OSError: The picture could not be written.
    """
    if trainer.max_epochs != -1:
        trainer.fit_loop.max_epochs = max(STEPS, trainer.max_epochs or 0)  # on few images, 100 steps are many epochs
    finder = Tuner(trainer).lr_find(
        task, datamodule=data, min_lr=LOWEST, max_lr=HIGHEST, num_training=STEPS, update_attr=False
    )
    assert finder is not None  # only a quick try, which the launcher refuses, finds nothing
    points = np.array([finder.results["lr"], finder.results["loss"]])[:, SKIPPED:-1]
    lrs, losses = points[:, np.isfinite(points[1])]
    if len(lrs) < 2:
        raise ValueError("--find_lr: the loss rose after too few steps to suggest a learning rate")
    # By the logarithm of the rate: by the rate itself, as Lightning suggests, the noise at the lowest ones decides.
    best = int(np.argmin(np.gradient(losses, np.log(lrs))))
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    finder.plot(ax=axes)
    axes.plot(lrs[best], losses[best], marker="o", color="red")
    save_figure(figure, file)
    lr = float(lrs[best]) / scale(task.optimization.base_batch, trainer, task.of_data("batch_size") or 0)
    return {"lr": float(f"{lr:.2g}"), "picture": str(file)}
