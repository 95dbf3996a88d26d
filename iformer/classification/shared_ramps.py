"""The training of one network for all frequency ramps, in which a search then looks for the best ones."""

from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from iformer.classification.task import PAPER, ClassificationTask
from iformer.common.ranges import Count, NotNegative, ShareBelowOne, checked
from iformer.models.backbone import create
from iformer.models.shared_ramps import Ramp, most_heads, ramp_of, set_ramp, share
from iformer.training.optimization import AdamWCosine
from iformer.training.resumable import current_epoch, run_seed


class SharedRampsTask(ClassificationTask):
    """The task of classification for all frequency ramps of an iFormer at once, which share their weights.

    Each training step draws ramps from the run's seed, the epoch and the batch, the same on all ranks, and minimises
    the mean of their losses. Two ramps in a step are a random one and its complement, which has attention where the
    first one has none: together they give every parameter a gradient, and train each branch as often as the others.
    With three and more, the first two are the one without attention and the one of attention alone, and the others are
    random ("sandwich rule", Yu and Huang, ICCV 2019).

    Evaluation takes the ramp of ``model`` and ``model_args``. BatchNorm's running statistics are those of all ramps;
    ``iformer search`` computes those of each ramp that it evaluates.

    What is saved are the shared weights. They can be loaded into any ordinary iFormer of the same preset, which takes
    the slices of its own ramp.

    Args:
        model: Name of an iFormer, such as ``iformer_nano``.
        num_classes: Number of classes, which must be the number of classes of the data.
        model_args: Further arguments of ``timm.create_model``, such as ``img_size``, ``in_chans``, ``drop_path_rate``.
        optimization: The optimiser and its schedule.
        label_smoothing: Share of the target that is spread over all classes.
        mixup: Alpha of Mixup, or 0 for none. It needs an even batch size.
        cutmix: Alpha of CutMix, or 0 for none. It needs an even batch size. If both are used, each batch is mixed by
            one of them, chosen with equal probability.
        ramps: Number of ramps in a training step, 2 or more. Each sees 2 / ``ramps`` of the batch's images, so that a
            step costs as much as two passes of the whole batch.
        channels_last: Whether to keep images and weights in the memory format that convolutions prefer.

    Raises:
        ValueError: There is no such model, it has no frequency ramp, or its arguments are wrong.
    """

    @checked
    def __init__(
        self,
        model: str,
        num_classes: Count = 1000,
        model_args: dict[str, Any] | None = None,
        optimization: AdamWCosine = PAPER,
        label_smoothing: ShareBelowOne = 0.1,
        mixup: NotNegative = 0.0,
        cutmix: NotNegative = 0.0,
        ramps: Annotated[int, Field(ge=2)] = 2,
        channels_last: bool = True,
    ) -> None:
        super().__init__(
            model, num_classes, False, model_args, optimization, label_smoothing, mixup, cutmix,
            channels_last=channels_last,
        )  # fmt: skip
        self.own_ramp = ramp_of(self.model)
        self.ramps = ramps
        self.drawn: list[Ramp] = []

    def build(self, pretrained: bool | str = False) -> Any:
        """Return a network like ``model`` with fresh weights, which all ramps share."""
        return share(partial(_built, self.network))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of the ramps that are drawn for a batch."""
        generator = np.random.default_rng((run_seed(), current_epoch(self.trainer), batch_idx))
        self.drawn = draw(generator, most_heads(self.model), self.ramps)
        return super().training_step(batch, batch_idx)

    def _training_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of the drawn ramps, each on its part of the images ``(N, C, H, W)``."""
        count = -(-2 * len(images) // self.ramps)
        losses = []
        for number, ramp in enumerate(self.drawn):
            set_ramp(self.model, ramp)
            first = number * len(images) // self.ramps  # the parts overlap: every image is in two of them
            part = (torch.arange(count, device=images.device) + first) % len(images)
            losses.append(self._loss(self(images[part]), targets[part]))
        set_ramp(self.model, self.own_ramp)
        return torch.stack(losses).mean()


def _built(network: dict[str, Any], **arguments: Any) -> Any:
    return create(**{**network, **arguments})


def draw(generator: np.random.Generator, most: Ramp, count: int) -> list[Ramp]:
    """Return the ramps of a training step.

    Args:
        generator: The source of random numbers.
        most: The greatest number of attention heads of each block.
        count: The number of ramps, 2 or more.
    """
    if count == 2:
        ramp = generator.integers(0, most, endpoint=True)
        return [ramp.tolist(), (np.asarray(most) - ramp).tolist()]
    others = [generator.integers(0, most, endpoint=True).tolist() for _ in range(count - 2)]
    return [[0] * len(most), [*most], *others]
