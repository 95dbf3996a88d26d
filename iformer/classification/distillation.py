"""Distillation: a student learns from a teacher besides the labels (Hinton et al., 2015; Touvron et al., 2021)."""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_warn
from timm.task import DistillationTeacher
from torch import Tensor

from iformer.common.ranges import Positive, Share, require_fields
from iformer.models import locations, saved


@dataclass(frozen=True)
class Distillation:
    """The teacher of a student, and what the student learns from it.

    The loss is ``(1 - weight)`` times the ordinary one plus ``weight`` times the distance to the teacher on the same
    images, which are augmented and mixed. The distance is one of

    - ``soft``: the Kullback-Leibler divergence of the probabilities at a temperature, times its square,
    - ``hard``: the cross entropy with the teacher's most probable class as the label,
    - ``features``: the mean squared difference of the pooled features before the classifier. Where the teacher has
      another number of them, the student's are projected by a linear layer that is trained with it.

    Args:
        teacher: A trained classifier: a run's folder, ``hf-hub:USER/NAME``, a file of released weights, or the name of
            a timm model, which has its released weights.
        kind: The distance: ``soft``, ``hard`` or ``features``.
        weight: Share of the teacher in the loss.
        temperature: Temperature of the ``soft`` distance.
    """

    teacher: str
    kind: Literal["soft", "hard", "features"] = "soft"
    weight: Share = 0.5
    temperature: Positive = 1.0

    def __post_init__(self) -> None:
        require_fields(self)


class Teacher(DistillationTeacher):
    """A teacher in evaluation mode, which is shown a student's images as it has learnt to see them.

    Args:
        settings: The teacher's name and the kind of distillation.
        channels: The number of channels of the student's images.

    Raises:
        ValueError: It is no classifier, or its images have another number of channels.
        OSError: A file is missing or cannot be read.
    """

    def __init__(self, settings: Distillation, channels: int) -> None:
        locations.refuse_exported(settings.teacher)
        with torch.random.fork_rng(devices=()):  # so that a run draws the same with and without a teacher
            found = saved.resolve(os.path.expanduser(settings.teacher))
        if found.task != "classification":
            raise ValueError(f"distillation.teacher: {settings.teacher} is for {found.task}, expected a classifier")
        if found.channels != channels:
            raise ValueError(
                f"distillation.teacher: {settings.teacher} takes images of {found.channels} channels, "
                f"but the student's have {channels}"
            )
        super().__init__(found.network.requires_grad_(False))
        self.settings, self.class_names = settings, found.class_names
        self.width = int(found.network.head_hidden_size)
        self.size = tuple(found.config["input_size"][1:])
        self.order: list[int] | None = None
        self.student_mean: Tensor | None
        self.student_std: Tensor | None
        for name in ("student_mean", "student_std"):
            self.register_buffer(name, None, persistent=False)
        self.eval()

    def __deepcopy__(self, memo: Any) -> "Teacher":
        """Return the teacher itself, because it does not change: a copy of a student has the same one."""
        return self

    def prepare(self, class_names: Sequence[str], data_config: Mapping[str, Any]) -> None:
        """Compare the classes with the student's, and note how the student's images are normalised.

        Classes of the same names may be in another order. Classes of other names throughout, as in a model of timm, are
        taken to be in the same order, and a warning says so.

        Args:
            class_names: The names of the student's classes.
            data_config: The preprocessing of the student's images. Without ``mean`` and ``std`` in it, images are taken
                to be normalised as the teacher wants them.

        Raises:
            ValueError: The teacher has another number of classes, or some of them have other names.
        """
        mine, theirs, teacher = list(self.class_names), list(class_names), self.settings.teacher
        if len(mine) != len(theirs):
            raise ValueError(f"distillation.teacher: {teacher} has {len(mine)} classes, but the data has {len(theirs)}")
        odd = [name for name in theirs if name not in mine]
        if 0 < len(odd) < len(theirs):
            raise ValueError(f"distillation.teacher: {teacher} has no class {odd[0]!r}, which the data has")
        if odd:
            rank_zero_warn(
                f"The teacher {teacher} has other names for its classes than the data, such as {mine[0]!r} for "
                f"{theirs[0]!r}: their order is taken to be the same"
            )
        elif mine != theirs:
            self.order = [mine.index(name) for name in theirs]
        if "mean" in data_config and "std" in data_config:
            self.student_mean = torch.tensor(data_config["mean"]).view(1, -1, 1, 1)
            self.student_std = torch.tensor(data_config["std"]).view(1, -1, 1, 1)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the weights."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        """Return the logits ``(N, K)`` of the student's images ``(N, C, H, W)``, in the order of the student's classes.

        With ``return_features``, return the pooled features ``(N, D)``. Images are resized to the teacher's size.
        """
        if (self.mean_kd.device, self.mean_kd.dtype) != (images.device, images.dtype):
            self.to(images.device, images.dtype)
        images = self.normalize_input(images, self.student_mean, self.student_std)
        if images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        with half_precision(images.device):
            answers = super().forward(images, return_features).float()
        return answers if return_features or self.order is None else answers[:, self.order]

    def distance(self, logits: Tensor, answers: Tensor) -> Tensor:
        """Return the distance of a student's logits ``(N, K)`` from the teacher's, ``soft`` or ``hard``."""
        if self.settings.kind == "hard":
            return F.cross_entropy(logits, answers.argmax(1))
        t = self.settings.temperature
        student, teacher = F.log_softmax(logits / t, 1), F.log_softmax(answers / t, 1)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * t**2


def half_precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return bfloat16 autocast where the device has instructions for it, and a context that changes nothing elsewhere.

    Without such instructions a processor is slower in bfloat16.
    """
    processor: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    supported = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": lambda: processor.get("avx512_bf16") or processor.get("amx_bf16"),
    }
    if supported.get(device.type, bool)():
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()
