"""A run that a GPU has no memory or no kernels for ends with one line, which names the settings to change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn

from iformer.common.images import find_images
from iformer.models import saved
from iformer.models.prediction import Options, predictions, predictor
from tests.conftest import Command
from tests.networks import small
from tests.training.tiny import recipe

MESSAGE = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.20 GiB is "
    "free. Including non-PyTorch memory, this process has 22.43 GiB memory in use. If reserved but unallocated memory "
    "is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)
SHOWN = MESSAGE.partition(" Including")[0]


class NoMemory(Callback):
    """Raises what torch raises where a GPU's memory is not enough."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        raise torch.OutOfMemoryError(MESSAGE)

    def on_test_batch_start(self, *_: Any) -> None:
        raise torch.OutOfMemoryError(MESSAGE)


class NotDeterministic(Callback):
    """Runs an operation without a deterministic implementation."""

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))


def error_of(iformer: Command, *arguments: object) -> str:
    status, _, told = iformer(*arguments)
    assert status == 2
    assert "Traceback" not in told
    (line,) = [line for line in told.splitlines() if line.startswith("iformer: error: ")]
    return line.removeprefix("iformer: error: ")


def no_memory(folder: Path, **changes: Any) -> Path:
    callbacks = [{"class_path": "tests.training.test_memory_errors.NoMemory"}]
    return recipe(folder, trainer__callbacks=callbacks, **changes)


def test_training_without_memory(tmp_path: Path, iformer: Command) -> None:
    assert error_of(iformer, "fit", "--config", no_memory(tmp_path)) == (
        f"{SHOWN} To need less, lower data.init_args.batch_size (4) and raise trainer.accumulate_grad_batches (1) by "
        "the same factor, or set model.init_args.grad_checkpointing to true, or set trainer.precision to bf16-mixed"
    )


def test_what_is_set_already_is_no_advice(tmp_path: Path, iformer: Command) -> None:
    changes = {"model__init_args__grad_checkpointing": True, "trainer__precision": "bf16-mixed"}
    line = error_of(iformer, "fit", "--config", no_memory(tmp_path, **changes))
    assert line.endswith("trainer.accumulate_grad_batches (1) by the same factor")


def test_evaluation_without_memory(tmp_path: Path, iformer: Command) -> None:
    file = no_memory(tmp_path, trainer__precision="bf16-mixed")
    line = error_of(iformer, "test", "--config", file)
    assert line == f"{SHOWN} To need less, lower data.init_args.batch_size (4)"


def test_training_without_deterministic_kernels(tmp_path: Path, iformer: Command) -> None:
    callbacks = [{"class_path": "tests.training.test_memory_errors.NotDeterministic"}]
    file = recipe(tmp_path, trainer__callbacks=callbacks, trainer__deterministic=True)
    try:
        line = error_of(iformer, "fit", "--config", file)
    finally:
        torch.use_deterministic_algorithms(False)
    assert line.startswith("trainer.deterministic is true, but put_ has no deterministic implementation")


class LittleMemory(nn.Module):
    """A network whose GPU has memory for one image, if that is dark."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 1 or images.max() > 0:
            raise torch.OutOfMemoryError(MESSAGE)
        return self.network(images)


def test_prediction_without_memory(tmp_path: Path) -> None:
    for name, shade in (("dark", 0), ("light", 255)):
        Image.new("RGB", (32, 32), (shade,) * 3).save(tmp_path / f"{name}.png")
    model = saved.of_classifier(small("iformer_nano"))
    model = replace(model, network=LittleMemory(model.network))
    dark, light = predictions(model, predictor(model, Options(output=None, device="cpu")), find_images([tmp_path]))
    assert len(dark["classes"]) == 5
    advice = "Give the image in a smaller size, or predict with --device cpu"
    assert light["error"] == f"{tmp_path / 'light.png'}: {SHOWN} {advice}"
