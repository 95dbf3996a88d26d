"""The input pipeline of the full recipe at 224 pixels: images per second and core, and where the time goes.

One process with one thread reads and augments every image ``--rounds`` times, like one worker of a data loader. Each
step is timed separately; the first pass, which fills the disk cache, is not counted. Without ``--images``, the images
are generated: JPEGs of blurred noise with 500x375 pixels, the most frequent size in ImageNet.

    python -m benchmarks.input_pipeline [--images FOLDER]
"""

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from rich.console import Console
from rich.progress import track
from rich.table import Table

from iformer.classification.data import ImageData
from iformer.common.files import write_json
from iformer.common.images import find_images, read_image
from iformer.common.provenance import provenance
from iformer.training.resumable import seed_from

# The transforms of iFormer's training on ImageNet-1K. Mixup and CutMix belong to the task, not to the pipeline.
RECIPE: dict[str, Any] = {
    "image_size": 224,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.25,
    "train_interpolation": "random",
}
STEPS = {
    "RandomResizedCropAndInterpolation": "crop and resize",
    "RandomHorizontalFlip": "flip",
    "RandAugment": "RandAugment",
    "MaybeToTensor": "to tensor",
    "Normalize": "normalise",
    "RandomErasing": "random erasing",
}


def generate(folder: Path, count: int, seed: int) -> None:
    """Write ``count`` JPEGs that are as detailed as photographs, about 60 kB each."""
    random = np.random.default_rng(seed)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((500, 375))
        grain = Image.fromarray(random.integers(0, 255, (375, 500, 3), dtype=np.uint8))
        image = Image.blend(coarse, grain.filter(ImageFilter.GaussianBlur(1)), 0.4)
        image.save(folder / f"{number}.jpg", quality=92)


def measure(files: list[Path], rounds: int, seed: int) -> tuple[dict[str, float], float]:
    """Return the seconds per image of each step, and of the whole pipeline when steps are not timed separately."""
    transform = ImageData(**RECIPE).train_transform()
    seconds: dict[str, float] = defaultdict(float)
    whole = 0.0
    for number in track(range(rounds + 1), "Measuring", console=Console(stderr=True)):
        for index, file in enumerate(files):
            torch.default_generator.manual_seed(seed_from(seed, number, index))
            start = time.perf_counter()
            image: Any = read_image(file)
            times = [("read and decode", time.perf_counter() - start)]
            for step in transform.transforms:
                start = time.perf_counter()
                image = step(image)
                times.append((STEPS[type(step).__name__], time.perf_counter() - start))
            torch.default_generator.manual_seed(seed_from(seed, number, index))
            start = time.perf_counter()
            transform(read_image(file))
            if number:
                whole += time.perf_counter() - start
                for name, duration in times:
                    seconds[name] += duration
    count = rounds * len(files)
    return {name: total / count for name, total in seconds.items()}, whole / count


def main() -> None:
    """Measure the pipeline, print the times and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of images to use instead of generated ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/results/input_pipeline.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.images is None:
            generate(Path(temporary), 64, arguments.seed)
        files = find_images([arguments.images or temporary])
        steps, whole = measure(files, arguments.rounds, arguments.seed)
        sizes = np.mean([Image.open(file).size for file in files], axis=0).round().astype(int).tolist()
        kilobytes = round(sum(file.stat().st_size for file in files) / len(files) / 1000)
    table = Table("step", "ms per image", "share", title=f"{1 / whole:.1f} images per second and core")
    for name, duration in steps.items():
        table.add_row(name, f"{1000 * duration:.2f}", f"{duration / sum(steps.values()):.0%}")
    Console().print(table)
    write_json(
        arguments.output,
        {
            **provenance(arguments.seed),
            "recipe": RECIPE,
            "images": len(files),
            "source": "photographs" if arguments.images else "generated JPEGs",
            "mean_width_and_height": sizes,
            "mean_kilobytes": kilobytes,
            "rounds": arguments.rounds,
            "images_per_second_and_core": round(1 / whole, 1),
            "milliseconds_per_image": {name: round(1000 * duration, 3) for name, duration in steps.items()},
        },
    )


if __name__ == "__main__":
    main()
