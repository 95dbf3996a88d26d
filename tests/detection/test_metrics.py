"""AP beside that of the reference implementation, pycocotools."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchmetrics import Metric

from iformer.detection.annotations import targets
from iformer.detection.metrics import AveragePrecision
from tests.detection.conftest import compressed, rectangle

CATEGORY_IDS = (1, 5, 9)
SIZE = (240, 320)
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def scene(seed: int, images: int = 12) -> dict:
    """Random objects of all sizes, some of them crowds, some images empty."""
    random = np.random.default_rng(seed)
    content: dict = {"images": [], "annotations": [], "categories": [{"id": i, "name": str(i)} for i in CATEGORY_IDS]}
    for image in range(images):
        content["images"].append({"id": image + 1, "height": SIZE[0], "width": SIZE[1], "file_name": f"{image}.png"})
        for _ in range(random.integers(0, 8) if image else 0):
            width, height = random.integers(6, 160, 2).tolist()
            box = (int(random.integers(0, SIZE[1] - width)), int(random.integers(0, SIZE[0] - height)), width, height)
            mask = rectangle(SIZE, box) * (random.random(SIZE) > 0.1)
            entry = {"id": len(content["annotations"]) + 1, "image_id": image + 1, "bbox": list(box)}
            content["annotations"].append(
                {
                    **entry,
                    "category_id": int(random.choice(CATEGORY_IDS)),
                    "iscrowd": int(random.random() < 0.15),
                    "area": float(mask.sum()),
                    "segmentation": compressed(mask.astype(np.uint8)),
                }
            )
    return content


def objects_of(content: dict, image: int) -> list[dict]:
    return [item for item in content["annotations"] if item["image_id"] == image]


def guesses(content: dict, seed: int) -> list[dict[str, Tensor]]:
    """What a mediocre detector finds: objects moved a little, some with another label, some nowhere."""
    random = np.random.default_rng(seed)
    found = []
    for image in content["images"]:
        boxes, labels = [], []
        for item in objects_of(content, image["id"]) * 2:
            x, y, width, height = np.array(item["bbox"]) + random.integers(-6, 7, 4)
            x, y = int(np.clip(x, 0, SIZE[1] - 8)), int(np.clip(y, 0, SIZE[0] - 8))
            boxes.append((x, y, min(max(width, 2), SIZE[1] - x), min(max(height, 2), SIZE[0] - y)))
            right = random.random() < 0.8
            labels.append(CATEGORY_IDS.index(item["category_id"]) + 1 if right else int(random.integers(1, 4)))
        masks = [rectangle(SIZE, tuple(map(int, box))) for box in boxes]
        corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=torch.float32).reshape(-1, 4)
        found.append(
            {
                "boxes": corners,
                "labels": torch.tensor(labels, dtype=torch.int64),
                "scores": torch.from_numpy(random.permutation(len(boxes)) / 100 + 0.1).float(),
                "masks": torch.from_numpy(np.array(masks)).reshape(-1, 1, *SIZE).float(),
            }
        )
    return found


def ours(content: dict, found: list[dict[str, Tensor]]) -> AveragePrecision:
    metric = AveragePrecision()
    wanted = [targets(objects_of(content, image["id"]), CATEGORY_IDS, SIZE) for image in content["images"]]
    for start in range(0, len(found), 5):
        metric.update(found[start : start + 5], wanted[start : start + 5])
    return metric


def reference(content: dict, found: list[dict[str, Tensor]], kind: str, folder: Path) -> COCOeval:
    (folder / "truth.json").write_text(json.dumps(content))
    results = []
    for image, one in zip(content["images"], found, strict=True):
        for box, label, score, mask in zip(one["boxes"], one["labels"], one["scores"], one["masks"], strict=True):
            x1, y1, x2, y2 = box.tolist()
            result = {"image_id": image["id"], "category_id": CATEGORY_IDS[label - 1], "score": float(score)}
            area = {"bbox": [x1, y1, x2 - x1, y2 - y1]}
            segmentation = {"segmentation": compressed(mask[0].numpy().astype(np.uint8))}
            results.append({**result, **(area if kind == "bbox" else segmentation)})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(folder / "truth.json")
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", [0, 1])
def test_ap_is_that_of_pycocotools(seed: int, tmp_path: Path) -> None:
    content = scene(seed)
    assert any(item["iscrowd"] for item in content["annotations"])
    found = guesses(content, seed)
    metric = ours(content, found)
    summary = metric.summary()
    per_class = metric.per_class()
    for kind, iou_type in (("box", "bbox"), ("mask", "segm")):
        expected = reference(content, found, iou_type, tmp_path)
        for name, value in zip(NAMES, expected.stats, strict=False):
            assert summary[f"{kind}_{name}"] == pytest.approx(value, abs=1e-4), (kind, name)
        assert 0.1 < summary[f"{kind}_ap"] < 0.9
        for i, label in enumerate(sorted(per_class)):
            precision = expected.eval["precision"][:, :, i, 0, -1]
            assert per_class[label][f"{kind}_ap"] == pytest.approx(precision.mean(), abs=1e-4)
            assert per_class[label][f"{kind}_ap50"] == pytest.approx(precision[0].mean(), abs=1e-4)


def test_crowds_are_ignored_and_not_counted(tmp_path: Path) -> None:
    content = scene(0)
    found = guesses(content, 0)
    with_crowds = ours(content, found).summary()
    for item in content["annotations"]:
        item["iscrowd"] = 0
    assert with_crowds["box_ap"] != pytest.approx(ours(content, found).summary()["box_ap"], abs=1e-3)


def test_without_masks_the_ap_of_boxes_is_the_same() -> None:
    content = scene(0)
    for item in content["annotations"][::2]:
        item["area"] = 0
    found = guesses(content, 0)
    both = ours(content, found)
    boxes = AveragePrecision(masks=False)
    wanted = [targets(objects_of(content, image["id"]), CATEGORY_IDS, SIZE, masks=False) for image in content["images"]]
    boxes.update([{name: one[name] for name in ("boxes", "labels", "scores")} for one in found], wanted)
    whole, alone = both.summary(), boxes.summary()
    assert set(alone) == {name for name in whole if name.startswith("box_")}
    for name in ("box_ap", "box_ap50", "box_ap75"):
        assert alone[name] == whole[name]
    assert all(set(row) == {"box_ap", "box_ap50"} for row in boxes.per_class().values())


def test_objects_without_a_mask_count_for_boxes_only(tmp_path: Path) -> None:
    content = scene(0)
    found = guesses(content, 0)
    whole = ours(content, found).summary()
    for item in content["annotations"][::3]:
        item["segmentation"] = None
    partial = ours(content, found).summary()
    for name in ("box_ap", "box_ap50", "box_ap75", "box_ap_large"):
        assert partial[name] == whole[name]
    for item in content["annotations"][::3]:  # as the reference ignores crowds
        item |= {"iscrowd": 1, "segmentation": compressed(rectangle(SIZE, tuple(item["bbox"])))}
    expected = reference(content, found, "segm", tmp_path)
    assert partial["mask_ap"] == pytest.approx(expected.stats[0], abs=1e-4)
    assert partial["mask_ap"] != pytest.approx(whole["mask_ap"], abs=1e-4)


def test_more_than_a_hundred_detections_count_as_a_hundred(tmp_path: Path) -> None:
    content = scene(0, images=3)
    found = guesses(content, 0)
    noise = 150
    boxes = torch.tensor([[0.0, 0.0, 3.0, 3.0]]).repeat(noise, 1)
    for one in found:
        one["boxes"] = torch.cat([boxes, one["boxes"]])
        one["labels"] = torch.cat([torch.ones(noise, dtype=torch.int64), one["labels"]])
        one["scores"] = torch.cat([torch.linspace(0.95, 0.99, noise), one["scores"]])
        one["masks"] = torch.cat([torch.zeros(noise, 1, *SIZE), one["masks"]])
    expected = reference(content, found, "bbox", tmp_path).stats[0]
    assert ours(content, found).summary()["box_ap"] == pytest.approx(expected, abs=1e-4)


def perfect(content: dict) -> list[dict[str, Tensor]]:
    found = []
    for image in content["images"]:
        objects = [item for item in objects_of(content, image["id"]) if not item["iscrowd"]]
        wanted = targets(objects, CATEGORY_IDS, SIZE)
        scores = torch.ones(len(objects))
        found.append({**wanted, "scores": scores, "masks": wanted["masks"][:, None].float()})
    return found


def test_perfect_predictions_score_one() -> None:
    content = scene(3)
    metric = ours(content, perfect(content))
    assert all(value == pytest.approx(1.0) for value in metric.summary().values())
    assert all(value == pytest.approx(1.0) for row in metric.per_class().values() for value in row.values())


def nothing(images: int) -> list[dict[str, Tensor]]:
    return [
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "scores": torch.zeros(0),
            "masks": torch.zeros(0, 1, *SIZE),
        }
    ] * images


def test_no_predictions_score_zero() -> None:
    content = scene(3)
    metric = ours(content, nothing(len(content["images"])))
    summary = metric.summary()
    assert summary["box_ap"] == summary["mask_ap"] == summary["box_ap50"] == 0
    assert all(value == 0 for row in metric.per_class().values() for value in row.values())


def test_nothing_to_find_scores_minus_one() -> None:
    content = {**scene(3), "annotations": []}
    metric = ours(content, nothing(len(content["images"])))
    assert set(metric.summary().values()) == {-1}
    assert metric.per_class() == {}
    assert set(ours(content, guesses(scene(3), 0)).summary().values()) == {-1}


def test_ranks_are_gathered_also_where_they_have_seen_different_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    content = scene(4)
    found = guesses(content, 4)
    wanted = [targets(objects_of(content, image["id"]), CATEGORY_IDS, SIZE) for image in content["images"]]
    ranks = [AveragePrecision(), AveragePrecision()]
    ranks[0].update(found[:7], wanted[:7])
    ranks[1].update(found[7:], wanted[7:])

    def gather(into: list, states: object) -> None:
        into[:] = [{name: getattr(rank, name) for name in rank._defaults} for rank in ranks]

    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "get_world_size", lambda: 2)
        patch.setattr(torch.distributed, "all_gather_object", gather)
        ranks[0]._sync_dist()
    assert ranks[0].summary() == ours(content, found).summary()


def test_torchmetrics_gathers_by_the_names_that_are_overridden() -> None:
    assert callable(Metric._sync_dist)
    assert AveragePrecision()._defaults.keys() >= {"detection_box", "groundtruth_box"}
