"""COCO's average precision of boxes and masks."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch.distributed
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_convert

from iformer.detection.masks import run_lengths

KINDS: dict[str, Any] = {"box": "bbox", "mask": "segm"}  # as torchmetrics calls them
SUMMARY = {"ap": "map", "ap50": "map_50", "ap75": "map_75"}
SUMMARY |= {f"ap_{size}": f"map_{size}" for size in ("small", "medium", "large")}


class AveragePrecision(MeanAveragePrecision):
    """The average precision (AP) of boxes and masks as ``pycocotools`` computes it.

    At most 100 detections in an image count. :meth:`update` takes the detector's outputs and the targets of
    :mod:`iformer.detection.annotations`, both in pixels of the stored images. The ranks may have seen different numbers
    of images. The AP of masks ignores objects without a mask, and the masks found in their boxes, as if they were
    crowds.

    Args:
        masks: Whether to evaluate masks too.
    """

    mask_crowds: list[Tensor]

    def __init__(self, masks: bool = True) -> None:
        super().__init__(
            iou_type=("bbox", "segm") if masks else "bbox",
            # In double precision, as in the reference. torchmetrics rounds its defaults to single precision, which
            # changes the AP of a few hundred objects by 0.001 if a recall falls on a threshold.
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0, 1, 101).tolist(),
            backend="faster_coco_eval",
            extended_summary=True,
        )
        self.warn_on_many_detections = False
        self.kinds = ("box", "mask") if masks else ("box",)
        self.add_state("mask_crowds", default=[], dist_reduce_fx=None)

    def update(self, preds: list[dict[str, Any]], target: list[dict[str, Tensor]]) -> None:
        """Add the detections and targets of images.

        This does the same as the method of torchmetrics, but encodes one mask at a time.

        Args:
            preds: The detections in each image, whose ``masks`` are probabilities ``(n, 1, H, W)`` or an iterator over
                masks ``(H, W)`` of bool.
            target: The target of each image.
        """
        for found, wanted in zip(preds, target, strict=True):
            self.detection_box.append(box_convert(found["boxes"], "xyxy", "xywh"))
            self.detection_labels.append(found["labels"])
            self.detection_scores.append(found["scores"])
            self.groundtruth_box.append(box_convert(wanted["boxes"], "xyxy", "xywh"))
            self.groundtruth_labels.append(wanted["labels"])
            self.groundtruth_crowds.append(wanted["iscrowd"])
            self.groundtruth_area.append(wanted["area"])
            if "mask" in self.kinds:
                masks = found["masks"][:, 0] > 0.5 if isinstance(found["masks"], Tensor) else found["masks"]
                self.detection_mask.append(_encoded(masks))
                self.groundtruth_mask.append(_encoded(wanted["masks"]))
                self.mask_crowds.append(wanted["iscrowd"] | ~wanted["masked"])
                self.groundtruth_area[-1] = wanted["area"].where(wanted["area"] > 0, wanted["masks"].sum((1, 2)))

    def compute(self) -> dict[str, Any]:
        """Return what torchmetrics computes for boxes and for masks, under names such as ``box_map_50``."""
        result: dict[str, Any] = {}
        crowds: dict[str, Any] = {"box": self.groundtruth_crowds, "mask": self.mask_crowds}
        for kind in self.kinds:
            self.iou_type, self.groundtruth_crowds = (KINDS[kind],), crowds[kind]
            result |= {f"{kind}_{name}": value for name, value in super().compute().items()}
        self.groundtruth_crowds = crowds["box"]
        return result

    def summary(self) -> dict[str, float]:
        """Return ``box_ap``, ``box_ap50``, ``box_ap75``, ``box_ap_small`` and so on, and the same for masks.

        The values lie between 0 and 1; a value is -1 if there are no objects to find, for example none of a size.
        """
        self._result = self.compute()
        return {
            f"{kind}_{name}": float(self._result[f"{kind}_{key}"])
            for kind in self.kinds
            for name, key in SUMMARY.items()
        }

    def per_class(self) -> dict[int, dict[str, float]]:
        """Return ``box_ap`` and ``box_ap50``, and the same for masks, for each label that occurs.

        :meth:`summary` must have been called before.
        """
        rows: dict[int, dict[str, float]] = {}
        for i, label in enumerate(self._result["box_classes"].reshape(-1).tolist()):
            rows[label] = {}
            for kind in self.kinds:
                # (IoU thresholds, recalls, classes, areas, numbers of detections); -1 where there is no object
                precision = self._result[f"{kind}_precision"][:, :, i, 0, -1]
                rows[label] |= {f"{kind}_ap": float(precision.mean()), f"{kind}_ap50": float(precision[0].mean())}
        return rows

    # torchmetrics has no public way to gather states of several lengths; a test fails when it drops these names.
    def _sync_dist(self, *_: object, **__: object) -> None:
        """Gather the states of all ranks. torchmetrics' own method hangs if one rank has seen fewer images."""
        # The states move to the CPU first: a rank must not unpickle tensors onto the device of another rank.
        states = {name: move_data_to_device(getattr(self, name), torch.device("cpu")) for name in self._defaults}
        gathered: list[dict[str, list]] = [{} for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(gathered, states)
        for name in self._defaults:
            setattr(self, name, [item for rank in gathered for item in rank[name]])


def _encoded(masks: Iterable[Tensor]) -> Any:
    """Return the run lengths of an image's masks in the form in which torchmetrics stores them."""
    encoded = map(run_lengths, masks)
    return tuple((tuple(mask["size"]), mask["counts"]) for mask in encoded)
