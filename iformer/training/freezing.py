"""Freezing the first stages of a network, or all but its head, for some epochs or for the whole run."""

from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from iformer.common.ranges import Count, checked
from iformer.training.resumable import current_epoch


class Freeze(Callback):
    """Leaves the first stages of the backbone as they are, with BatchNorm, dropout and drop path in evaluation mode.

    What is frozen is a function of the epoch alone, so that a resumed run goes on as an uninterrupted one. The
    optimiser has all parameters from the beginning, and passes over those without gradients. In a single process,
    frozen parameters need no backward pass; several processes compute their gradients and drop them, because DDP
    decides once for the whole run which gradients it exchanges.

    Args:
        stages: The number of stages to freeze, with the stem; ``all`` freezes the whole backbone, in a classifier
            everything but the last layer; null freezes nothing.
        epochs: The number of epochs after which everything is trained; null freezes for the whole run.
    """

    @checked
    def __init__(self, stages: Count | Literal["all"] | None = None, epochs: Count | None = None) -> None:
        self.stages, self.epochs = stages, epochs
        self.frozen = False
        self.parameters: list[nn.Parameter] = []
        self.modules: list[nn.Module] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the parameters to freeze; by now the optimiser has all of them.

        Raises:
            ValueError: The backbone has fewer stages or does not name them; or the strategy is FSDP.
        """
        if self.stages is None:
            return
        if isinstance(trainer.strategy, FSDPStrategy):
            raise ValueError("freeze.stages does not go with trainer.strategy fsdp; set it to null, or use ddp")
        network: Any = pl_module.model
        self.parameters = _first(network, self.stages)
        ids = {id(parameter) for parameter in self.parameters}
        self.modules = [
            module
            for module in network.modules()
            if (own := [id(parameter) for parameter in module.parameters()]) and ids.issuperset(own)
        ]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Freeze or unfreeze for this epoch; a run that is resumed in the middle of one does not see its start."""
        freeze = bool(self.parameters) and (self.epochs is None or current_epoch(trainer) < self.epochs)
        if freeze != self.frozen:
            self.frozen = freeze
            for parameter in self.parameters:
                parameter.requires_grad_(not freeze or trainer.world_size > 1)
            for module in self.modules:
                module.train(not freeze)
        if freeze and any(module.training for module in self.modules):
            for module in self.modules:
                module.eval()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the gradients of frozen parameters."""
        if self.frozen:
            for parameter in self.parameters:
                parameter.grad = None


def _first(network: nn.Module, stages: int | Literal["all"]) -> list[nn.Parameter]:
    """Return the parameters of a network's backbone up to the end of a stage, in the order of their definition."""
    backbone: Any = next((module for module in network.modules() if hasattr(module, "feature_info")), None)
    if backbone is None:
        raise ValueError(f"freeze.stages: {type(network).__name__} does not say which of its modules are stages")
    if stages == "all":
        head = {id(parameter) for parameter in getattr(backbone, "get_classifier", nn.Identity)().parameters()}
        return [parameter for parameter in backbone.parameters() if id(parameter) not in head]
    # timm's feature extractors have names of their own: `stages_0` or `model.stages.0` instead of `stages.0`.
    names = [f"{name.removeprefix('model.').replace('.', '_')}_" for name, _ in backbone.named_parameters()]
    info = getattr(backbone.feature_info, "info", backbone.feature_info)
    ends = [
        last
        for module in (f"{entry['module'].replace('.', '_')}_" for entry in info)
        if (last := max((i for i, name in enumerate(names) if name.startswith(module)), default=None)) is not None
    ]
    if stages > len(ends):
        raise ValueError(f"freeze.stages is {stages}, but the backbone has {len(ends)} stages")
    return list(backbone.parameters())[: ends[stages - 1] + 1]
