"""Peak memory of a training step of Mask R-CNN: iFormer-S, one image of 800x1280, float32, on the CPU.

    python -m benchmarks.detection_memory

The result is the highest resident memory of the process with gradient checkpointing, which includes weights, gradients
and the state of AdamW. The image holds 20 objects, and training samples 512 regions.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from iformer.benchmark.memory import peak_of
from iformer.benchmark.training import target
from iformer.common.files import write_json
from iformer.common.provenance import provenance
from iformer.detection.task import DetectionTask

HEIGHT, WIDTH = 800, 1280


def prepared_step(seed: int) -> Callable[[], None]:
    """Return a training step of the detector."""
    torch.manual_seed(seed)
    task = DetectionTask("iformer_small", grad_checkpointing=True)
    task.model.train()
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-4, weight_decay=0.05)
    objects = target(HEIGHT, WIDTH, torch.default_generator, torch.device("cpu"))

    def step() -> None:
        loss = torch.stack(list(task.model([torch.rand(3, HEIGHT, WIDTH)], [objects]).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    """Measure the memory, print it and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/results/detection_memory.json"))
    arguments = parser.parse_args()
    peak = round(peak_of("benchmarks.detection_memory:prepared_step", arguments.seed).highest / 2**10, 2)
    print(f"{peak:.2f} GiB")
    write_json(
        arguments.output,
        {
            **provenance(arguments.seed),
            "model": "Mask R-CNN with iformer_small",
            "image": [HEIGHT, WIDTH],
            "batch_size": 1,
            "precision": "float32",
            "grad_checkpointing": True,
            "peak_memory_gib": peak,
        },
    )


if __name__ == "__main__":
    main()
