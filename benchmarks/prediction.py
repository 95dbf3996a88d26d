"""Prediction from files: what of the network's speed is left, beside timm's inference script, and against their number.

    python -m benchmarks.prediction --photographs FOLDER

The photographs are cropped to 224x224 pixels and saved as JPEGs. On these, `iformer predict`
with two workers stands beside its own network alone, and beside a loop like that of timm's inference.py. timm's package
does not have this script, so that the loop is written after it, of the same public functions and with its defaults:
create_dataset, create_loader with two worker processes and the prefetcher, softmax, topk, and labels. Both get the same
weights and files, and the loop two batch sizes: that of the command, and the script's own.

The time of the whole command against the number of files is measured with iformer_nano, on links to one small JPEG.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import numpy as np
import timm
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from timm.data import ImageNetInfo, create_dataset, create_loader, infer_imagenet_subset

from benchmarks.tables import about, markdown
from iformer.benchmark.configurations import Configuration
from iformer.benchmark.end_to_end import Pair
from iformer.benchmark.rounds import in_rounds
from iformer.common.files import write_json
from iformer.common.images import find_images, read_image
from iformer.common.plotting import BLUE, STYLE, save_figure
from iformer.common.provenance import provenance
from iformer.models import saved
from iformer.models.prediction import PIXELS
from iformer.models.saved import Model

SIDE = 224

TIMMS_BATCH = 256
"""The batch size of timm's inference.py, unless it is given another."""


def crop(photographs: Path, folder: Path, count: int) -> list[Path]:
    """Write ``count`` JPEGs of 224x224 pixels, cropped at random places from a folder's photographs in turn."""
    random = np.random.default_rng(0)
    sources = itertools.cycle(find_images([photographs]))
    written = []
    for number in range(count):
        photo = read_image(next(sources))
        if min(photo.size) < SIDE:
            photo = ImageOps.fit(photo, (SIDE, SIDE))
        left, top = (int(random.integers(0, side - SIDE + 1)) for side in photo.size)
        file = folder / f"{number:05}.jpg"
        photo.crop((left, top, left + SIDE, top + SIDE)).save(file, quality=92)
        written.append(file)
    return written


def timm_loop(model: Model, folder: Path, batch: int, workers: int) -> list[float]:
    """Return the seconds that an image takes in a loop like that of timm's inference.py, in a list of one."""
    start = time.perf_counter()
    dataset = create_dataset(name="", root=str(folder))
    loader = create_loader(
        dataset,
        batch_size=batch,
        use_prefetcher=True,
        num_workers=workers,
        device=torch.device("cpu"),
        img_dtype=torch.float32,
        **model.config,
    )
    names = ImageNetInfo(infer_imagenet_subset(model.network))
    outputs, labels = [], []
    with torch.inference_mode():
        for images, _ in loader:
            values, indices = model.network(images).softmax(-1).topk(5)
            labels += [[names.index_to_description(index) for index in row] for row in indices.tolist()]
            outputs.append(values.float().numpy())
    assert len(labels) == len(np.concatenate(outputs)) == len(dataset)
    return [(time.perf_counter() - start) / len(dataset)]


def beside_timm(name: str, files: Sequence[Path], batch: int, workers: int, rounds: int) -> dict[str, Any]:
    """Return images per second of prediction, of its network alone and of timm's loop, and their ratios."""
    pair = Pair(Configuration(name, "eager", "fp32", batch, SIDE, SIDE), files, workers)
    loop = partial(timm_loop, pair.model, files[0].parent, workers=workers)
    turns = {
        "predict": pair.whole,
        "network alone": pair.network_alone,
        f"timm's loop, batches of {batch}": partial(loop, batch),
        f"timm's loop, batches of {TIMMS_BATCH}": partial(loop, TIMMS_BATCH),
    }
    for turn in turns.values():
        turn()  # warm up
    seconds = [median(times) for times in in_rounds(list(turns.values()), range(rounds))]
    speed = {what: round(1 / each, 2) for what, each in zip(turns, seconds, strict=True)}
    return {
        "model": name,
        "images": len(files),
        "batch": batch,
        "workers": workers,
        "images_per_second": speed,
        "share_of_network": round(speed["predict"] / speed["network alone"], 3),
        "over_timm": round(speed["predict"] / max(list(speed.values())[2:]), 3),
    }


def command_times(counts: Sequence[int], rounds: int, folder: Path) -> dict[str, Any]:
    """Return the seconds of `iformer predict` for numbers of files, its start-up and the milliseconds of a file."""
    network: Any = timm.create_model("iformer_nano", num_classes=10)
    saved.save(network, folder / "model", [f"class {number}" for number in range(10)], input_size=(3, 32, 32))
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / "one.jpg")
    for count in counts:
        (folder / f"{count}").mkdir()
        for number in range(count):
            (folder / f"{count}" / f"{number}.jpg").symlink_to(folder / "one.jpg")

    def turn(count: int) -> list[float]:
        output = folder / "results.jsonl"
        output.unlink(missing_ok=True)
        command = [sys.executable, "-m", "iformer", "predict", str(folder / f"{count}")]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--model", str(folder / "model"), "--output", str(output)], check=True, capture_output=True
        )
        return [time.perf_counter() - start]

    seconds = [median(times) for times in in_rounds([partial(turn, count) for count in counts], range(rounds))]
    slope, start_up = np.polyfit(counts, seconds, 1)
    return {
        "model": "iformer_nano",
        "files": list(counts),
        "seconds": [round(each, 2) for each in seconds],
        "start_up_seconds": round(float(start_up), 2),
        "milliseconds_per_file": round(1e3 * float(slope), 3),
    }


def draw(results: dict[str, Any], file: Path) -> None:
    """Draw the time of the command over the number of files, and the line that fits it."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((5, 3), layout="constrained")
        axes = figure.subplots()
        axes.plot(results["files"], results["seconds"], "o", color=BLUE)
        start, slope = results["start_up_seconds"], results["milliseconds_per_file"] / 1e3
        axes.plot(results["files"], [start + slope * count for count in results["files"]], color=BLUE, linewidth=1)
        axes.set(xlabel="files", ylabel="seconds of the whole command", ylim=(0, None))
    save_figure(figure, file)


def section(results: dict[str, Any], folder: str) -> str:
    """Return the section of the page in Markdown; its figures are in ``folder``."""
    parts = [f"## Prediction from files\n\n{about(results)}"]
    if "photographs" in results:
        found = results["photographs"]
        parts.append(
            f"{found['model']}, {found['images']:,} JPEGs of 224x224 cropped from photographs, batches of "
            f"{found['batch']}, {found['workers']} workers, eager fp32. timm's loop is written after its inference.py, "
            "of the same public functions and with the same defaults, on the same files and weights; "
            f"{TIMMS_BATCH} is the script's own batch size."
        )
        rows = [[what, f"{value:.1f}"] for what, value in found["images_per_second"].items()]
        rows.append(["predict, share of the network alone", f"{found['share_of_network']:.0%}"])
        rows.append(["predict over the faster of timm's loops", f"{found['over_timm']:.2f}"])
        parts.append(markdown(["", "images/s"], rows))
    found = results["files"]
    parts.append(
        f"The whole command with {found['model']}, small JPEGs: {found['start_up_seconds']:.1f} s to start, then "
        f"{found['milliseconds_per_file']:.2f} ms a file, fitted to {found['files'][0]:,} to {found['files'][-1]:,}."
    )
    parts.append(f"![Time of the command against the number of files]({folder}/files.png)")
    return "\n\n".join(parts)


def main(given: Sequence[str] | None = None) -> None:
    """Measure, and write the results and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--photographs", type=Path, help="a folder of photographs; without it, only the number of files"
    )
    parser.add_argument("--model", default="iformer_small")
    parser.add_argument("--images", type=int, default=512, help="how many crops")
    parser.add_argument("--batch", type=int, default=PIXELS // SIDE**2, help="default: that of predict")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--files", nargs="+", type=int, default=[100, 300, 1000, 3000, 5000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path("docs/results/performance/prediction.json"))
    arguments = parser.parse_args(given)
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {**provenance(0), "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.photographs:
            (folder / "crops").mkdir()
            files = crop(arguments.photographs, folder / "crops", arguments.images)
            batch, workers = arguments.batch, arguments.workers
            results["photographs"] = beside_timm(arguments.model, files, batch, workers, arguments.rounds)
            print(json.dumps(results["photographs"], indent=2))
        results["files"] = command_times(arguments.files, arguments.rounds, folder)
    draw(results["files"], arguments.output.parent / "files.png")
    write_json(arguments.output, results)


if __name__ == "__main__":
    main()
