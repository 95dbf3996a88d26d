"""Training steps as configurations: forward pass, loss, backward pass and AdamW, on random images and targets.

Weights are float32; bf16 and fp16 are autocast's. As in this project's tasks, iFormers recompute what is cheap, and
models are in ``channels_last``, except for those that a function returns, which decides for itself. The compile engine
is that of ``compile_model``.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from iformer.benchmark import configurations, detectors
from iformer.models.prediction import TYPES
from iformer.models.recomputation import recompute

if TYPE_CHECKING:
    from iformer.benchmark.configurations import Configuration

OBJECTS = 20
"""The number of objects in each image of a detector."""


def runner(configuration: "Configuration") -> Callable[[], object]:
    """Return a function that does one training step.

    Raises:
        ValueError: There is no such model, or it is neither a classifier nor a detector.
    """
    device, dtype = torch.device(configuration.device), TYPES[configuration.precision]
    model = network(configuration).to(device)
    if not configurations.is_function(configuration.model):
        model = model.to(memory_format=torch.channels_last)
    if configuration.engine == "compile":
        model.compile()
    inputs = inputs_for(model, configuration, configuration.batch, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = _loss(model, inputs)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def network(configuration: "Configuration") -> Any:
    """Return the configuration's network in training mode; a detector takes images of their size as they are.

    Raises:
        ValueError: There is no such model, or it is neither a classifier nor a detector.
    """
    opened = configurations.open_model(configuration.model, configuration.task)
    if opened.task == "segmentation":
        raise ValueError(f"{configuration.title}: training is measured for classifiers and detectors only")
    if detectors.is_detector(opened.network):
        detectors.take_whole(opened.network, configuration.height, configuration.width)
    return recompute(opened.network).train()


def inputs_for(model: Any, configuration: "Configuration", count: int, device: torch.device) -> tuple[Any, Any]:
    """Return random images, and labels or a detector's targets for them, on a device."""
    height, width = configuration.height, configuration.width
    generator = torch.Generator().manual_seed(0)
    if detectors.is_detector(model):
        images = [image.to(device) for image in detectors.images_for(count, height, width)]
        return images, [target(height, width, generator, device) for _ in images]
    pixels = torch.randn(count, configurations.channels(model), height, width, generator=generator).to(device)
    if not configurations.is_function(configuration.model):
        pixels = pixels.to(memory_format=torch.channels_last)
    return pixels, torch.randint(1000, (count,), generator=generator).to(device)


def target(height: int, width: int, generator: torch.Generator, device: torch.device) -> dict[str, Tensor]:
    """Return a detector's target of :data:`OBJECTS` rectangles, from a fortieth to three eighths of a side."""
    sides = torch.tensor([width, height])
    corners = torch.rand(OBJECTS, 2, generator=generator) * sides * 5 / 8
    boxes = torch.cat([corners, corners + sides * (1 / 40 + 0.35 * torch.rand(OBJECTS, 2, generator=generator))], 1)
    masks = torch.zeros(OBJECTS, height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    labels = torch.randint(1, 81, (OBJECTS,), generator=generator)
    return {"boxes": boxes.to(device), "labels": labels.to(device), "masks": masks.to(device)}


def _loss(model: Any, inputs: tuple[Any, Any]) -> Tensor:
    """Return the loss: cross entropy, or the sum of a detector's losses."""
    images, targets = inputs
    if isinstance(targets, Tensor):
        logits = model(images)
        return F.cross_entropy(logits, targets % logits.shape[1])
    return torch.stack(list(model(images, targets).values())).sum()
