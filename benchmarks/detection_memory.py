"""Peak memory of a training step of Mask R-CNN: iFormer-S, one image of 800x1280, float32, on the CPU.

    python -m benchmarks.detection_memory

The process's highest resident memory with gradient checkpointing, weights, gradients and AdamW's state included. The
image holds 20 objects, and training samples 512 regions.
"""

import argparse
import resource
import sys
from pathlib import Path

import torch

from benchmarks import record
from iformer.common.provenance import provenance
from iformer.detection.task import DetectionTask

HEIGHT, WIDTH, OBJECTS, TARGET_GIB = 800, 1280, 20, 8.0


def measure(seed: int) -> float:
    """Peak memory in GiB of this process after two steps."""
    torch.manual_seed(seed)
    task = DetectionTask("iformer_small", grad_checkpointing=True)
    task.model.train()
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-4, weight_decay=0.05)
    corners = torch.rand(OBJECTS, 2) * torch.tensor([WIDTH - 300, HEIGHT - 300])
    boxes = torch.cat([corners, corners + 20 + 280 * torch.rand(OBJECTS, 2)], 1)
    masks = torch.zeros(OBJECTS, HEIGHT, WIDTH, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    target = {"boxes": boxes, "labels": torch.randint(1, 81, (OBJECTS,)), "masks": masks}
    for _ in range(2):
        loss = torch.stack(list(task.model([torch.rand(3, HEIGHT, WIDTH)], [target]).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/results/detection_memory.json"))
    arguments = parser.parse_args()
    peak = round(measure(arguments.seed), 2)
    print(f"{peak:.2f} GiB, target < {TARGET_GIB} GiB")
    record.write(
        arguments.output,
        {
            **provenance(arguments.seed),
            "model": "Mask R-CNN with iformer_small",
            "image": [HEIGHT, WIDTH],
            "batch_size": 1,
            "precision": "float32",
            "grad_checkpointing": True,
            "peak_memory_gib": peak,
            "target": f"< {TARGET_GIB} GiB",
        },
    )


if __name__ == "__main__":
    main()
