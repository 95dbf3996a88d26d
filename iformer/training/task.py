"""The base class of the tasks: optimiser and schedule, class names, result files and export."""

from pathlib import Path
from typing import Any, ClassVar

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_warn
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from iformer.common.pages import write_csv
from iformer.training.class_weights import ClassWeights, weights_of
from iformer.training.optimization import AdamWCosine, AdamWSteps


def network_config(own: dict[str, Any], model_args: dict[str, Any] | None) -> dict[str, Any]:
    """Return all arguments from which a task's network is built.

    Args:
        own: The network's arguments that are arguments of the task itself.
        model_args: The task's ``model_args``, further arguments of the network.

    Raises:
        ValueError: An argument of the task is among ``model_args``.
    """
    further = model_args or {}
    if double := sorted({*own, "pretrained", "pretrained_backbone"} & further.keys()):
        raise ValueError(f"model_args: {double[0]} is an argument of the task; set it beside model_args")
    return {**own, **further}


class Task(lightning.LightningModule):
    """Training and evaluation of a network; the base class of the tasks.

    The constructor of a task sets ``model``, ``num_classes`` and ``optimization``; a task implements :meth:`build` and
    :meth:`save`.

    Attributes:
        metric: The name of the task's main metric, which is logged as ``val_NAME`` and ``test_NAME``: a share, of which
            more is better.
        learns_in_validation: Whether a validation changes what the task saves, such as thresholds.
        class_weights: The weights of the classes in the loss as a task's user gives them, or None.
        loss_weights: These weights as a tensor ``(num_classes,)``, from the beginning of training on.
    """

    metric: ClassVar[str]
    learns_in_validation: ClassVar[bool] = False
    model: Any
    num_classes: int
    optimization: AdamWCosine | AdamWSteps
    parameter_groups: list[dict[str, Any]]
    class_weights: ClassWeights | None = None
    loss_weights: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("loss_weights", None, persistent=False)
        self.per_class: list[dict[str, Any]] = []

    def build(self) -> nn.Module:
        """Return a network like ``model``, without its weights."""
        raise NotImplementedError

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write ``model`` into ``folder`` in the format that :mod:`iformer.models.saved` reads.

        Raises:
            OSError: The files could not be written.
        """
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Compare the classes of data and model, weigh them, and group the parameters before they are sharded.

        Raises:
            ValueError: The number of classes of the data differs from the model's, or ``class_weights`` do not fit
                them.
        """
        names = self.of_data("class_names")
        if names is not None and len(names) != self.num_classes:
            raise ValueError(
                f"model.init_args.num_classes is {self.num_classes}, but the data has {len(names)} classes"
            )
        if stage == "fit" and self.class_weights is not None:
            key, counts = "model.init_args.class_weights", lambda: self.of_data("class_counts")
            weights = weights_of(key, self.class_weights, self.class_names, counts)
            self.loss_weights = torch.tensor(weights, device=self.device)
        self.parameter_groups = self.optimization.parameter_groups(self.model) if stage == "fit" else []

    def on_test_start(self) -> None:
        """Warn where the figures will be those of the validation images."""
        if self.of_data("has_test") is False:
            rank_zero_warn("no test images: these are the figures of the validation images")

    def export(self, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the network for ``iformer predict`` and timm into ``folder``.

        Args:
            folder: The run's folder.
            state_dict: The task's state dict, if the weights in memory are only one rank's shard.

        Raises:
            OSError: The files could not be written.
        """
        model = self.model
        if state_dict is not None:
            model = self.build()
            prefix = "model."
            model.load_state_dict({k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)})
        self.save(model, folder)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, or "class 0" and so on if the data has none."""
        names = self.of_data("class_names") or [f"class {index}" for index in range(self.num_classes)]
        return [str(name) for name in names]

    def of_data(self, name: str) -> Any:
        """Return an attribute of the datamodule, or None if it does not exist."""
        return getattr(getattr(self.trainer, "datamodule", None), name, None)

    def keep_per_class(self, rows: list[dict[str, Any]]) -> None:
        """Keep a row of figures for each class; outside of training, write ``per_class.csv`` into the run's folder.

        Args:
            rows: The figures of each class by their names.

        Raises:
            OSError: The table could not be written.
        """
        self.per_class = rows
        if rows and self.trainer.state.fn != "fit":
            self.write_table("per_class.csv", [[*rows[0]], *([*row.values()] for row in rows)])

    def write_confusion(self, matrix: Tensor) -> None:
        """Write a confusion matrix ``(K, K)``, whose rows are true classes, to ``confusion.csv`` in the run's folder.

        Raises:
            OSError: The table could not be written.
        """
        names = self.class_names
        rows = zip(names, matrix.tolist(), strict=True)
        self.write_table("confusion.csv", [["true", *names], *([name, *counts] for name, counts in rows)])

    def write_table(self, name: str, rows: list[list[Any]]) -> None:
        """Write a CSV file into the run's folder, on the first rank.

        Raises:
            OSError: The table could not be written.
        """
        if self.trainer.is_global_zero:
            write_csv(Path(self.trainer.default_root_dir, name), rows)

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule, see :mod:`iformer.training.optimization`.

        Raises:
            ValueError: The learning rate depends on the batch size, but the datamodule has none.
        """
        batch_size = self.of_data("batch_size")
        if batch_size is None and self.optimization.base_batch is not None:
            raise ValueError(
                "optimization.base_batch scales the learning rate by the batch size, but the data has no batch_size"
            )
        return self.optimization.configure(self.parameter_groups, self.trainer, batch_size or 0)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the learning rate for the next step, see :mod:`iformer.training.optimization`."""
        if isinstance(scheduler, CosineLRScheduler | LambdaLR):
            self.optimization.update(scheduler, self.trainer)
        else:  # that of the learning rate finder
            scheduler.step()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient; under FSDP too, where Lightning refuses to clip its norm."""
        strategy: Any = self.trainer.strategy
        if isinstance(strategy.model, FullyShardedDataParallel) and gradient_clip_algorithm != "value":
            if gradient_clip_val:
                strategy.model.clip_grad_norm_(gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
