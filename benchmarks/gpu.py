"""Training and inference on a GPU: iFormer-S, B and L beside ConvNeXt, Swin and naive iFormers; and Mask R-CNN.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --eager --only training_small_128 inference_small_bf16_256

Models of one size are measured in the same rounds, each in a process of its own. The results of each group are kept in
a folder, so that a measurement that was stopped goes on where it was; what does not fit into the GPU's memory, or does
not run, is recorded with the reason. docs/gpu.md is written from docs/results/gpu.json.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.naive_iformer import NaiveIFormer
from benchmarks.tables import about, markdown
from iformer.benchmark import page as benchmark_page
from iformer.benchmark.configurations import Configuration, is_function
from iformer.benchmark.rounds import run
from iformer.common.files import write_json, write_text
from iformer.common.provenance import provenance

SIZES: dict[str, tuple[str, ...]] = {
    "small": ("benchmarks.gpu:naive_small", "iformer_small", "convnext_tiny", "swin_tiny_patch4_window7_224"),
    "base": ("benchmarks.gpu:naive_base", "iformer_base", "convnext_small", "swin_small_patch4_window7_224"),
    "large": ("benchmarks.gpu:naive_large", "iformer_large", "convnext_base", "swin_base_patch4_window7_224"),
}
"""The models that are measured together: a naive iFormer, ours, and its peers of about as many multiply-adds."""

KINDS = {
    "training": "Training",
    "inference": "Inference",
    "detector_training": "Training of Mask R-CNN",
    "detector_inference": "Inference of Mask R-CNN",
}
"""What is measured, with the headings of the page; the name of a group begins with one of these."""


def naive_small() -> nn.Module:
    """Return the naive iFormer-S."""
    return NaiveIFormer("iformer_small")


def naive_base() -> nn.Module:
    """Return the naive iFormer-B."""
    return NaiveIFormer("iformer_base")


def naive_large() -> nn.Module:
    """Return the naive iFormer-L."""
    return NaiveIFormer("iformer_large")


@dataclass(frozen=True)
class Work:
    """What is measured.

    Attributes:
        device: The device.
        sizes: The models of each group: a function, ours, and the peers.
        image: The height and width of a classifier's images in pixels.
        scene: The height and width of a detector's images in pixels.
        training: The batch sizes in training; the models are compiled, too, for the last of them.
        inference: The batch sizes in inference.
        scenes: The batch size of detectors in training, and those in inference.
        precision: The precision of training.
        precisions: The precisions of inference.
        compiled: Whether to measure compiled models, too.
    """

    device: str = "cuda"
    sizes: tuple[tuple[str, tuple[str, ...]], ...] = tuple(SIZES.items())
    image: tuple[int, int] = (224, 224)
    scene: tuple[int, int] = (800, 1280)
    training: tuple[int, ...] = (32, 128)
    inference: tuple[int, ...] = (1, 256)
    scenes: tuple[int, tuple[int, ...]] = (2, (1, 8))
    precision: str = "bf16"
    precisions: tuple[str, ...] = ("fp16", "bf16")
    compiled: bool = True


def groups(work: Work) -> dict[str, list[Configuration]]:
    """Return the configurations that are measured in the same rounds, by the name of the group."""
    found: dict[str, list[Configuration]] = {}
    for size, models in work.sizes:
        for batch in work.training:
            found[f"training_{size}_{batch}"] = _training(work, models, batch)
        for batch in work.inference:
            for precision in work.precisions:
                found[f"inference_{size}_{precision}_{batch}"] = _inference(work, models, precision, batch)
        found |= _detection(work, size, [model for model in models if not is_function(model)])
    return found


def _training(work: Work, models: Sequence[str], batch: int) -> list[Configuration]:
    engines = ["eager", *(["compile"] if work.compiled and batch == work.training[-1] else [])]
    return [
        Configuration(model, engine, work.precision, batch, *work.image, work.device, training=True)
        for engine in engines
        for model in models
        if engine == "eager" or not is_function(model)
    ]


def _inference(work: Work, models: Sequence[str], precision: str, batch: int) -> list[Configuration]:
    ours = next(model for model in models if not is_function(model))
    chosen = [(model, "eager") for model in models] + [(ours, "fused")]
    if work.compiled:
        chosen += [(model, "compile") for model in models if not is_function(model)]
    return [Configuration(model, engine, precision, batch, *work.image, work.device) for model, engine in chosen]


def _detection(work: Work, size: str, models: Sequence[str]) -> dict[str, list[Configuration]]:
    batch, batches = work.scenes
    backbones = [
        Configuration(model, "eager", work.precision, batch, *work.scene, work.device, task="detection", training=True)
        for model in models
    ]
    found = {f"detector_training_{size}_{batch}": backbones}
    for batch in batches:
        for precision in work.precisions:
            found[f"detector_inference_{size}_{precision}_{batch}"] = [
                Configuration(model, engine, precision, batch, *work.scene, work.device, task="detection")
                for model, engine in [(models[0], "fused"), *((model, "eager") for model in models)]
            ]
    return found


def measure(work: Work, folder: Path, rounds: int, only: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Measure each group, or ``only`` some, whose results are not in a folder yet, and write them there.

    Results of another machine, or of other versions, count for nothing.

    Returns:
        The results of all groups that have been measured, now or before.
    """
    found = {}
    here = provenance(0)
    chosen = [*(only or groups(work))]
    for name, group in groups(work).items():
        file = folder / f"{name}.json"
        results = json.loads(file.read_text()) if file.is_file() else {}
        known = all(results.get("versions", {}).get(each) == value for each, value in here["versions"].items())
        known = known and (results["machine"], results["rounds"]) == (here["machine"], rounds)
        if name in chosen and not known:
            print(f"{chosen.index(name) + 1} of {len(chosen)}: {name}", file=sys.stderr)
            failed: dict[Configuration, str] = {}
            results = run(group, rounds, failed=failed)
            results["failed"] = [{**asdict(each), "reason": reason} for each, reason in failed.items()]
            write_json(file, results)
        if name in chosen or known:
            found[name] = results
    return found


def page(results: dict[str, dict[str, Any]]) -> str:
    """Return docs/gpu.md in Markdown: how to measure, and what was measured, if anything was."""
    parts = [HEAD]
    if not results:
        parts.append("There are no figures yet: it has not been run on a GPU.")
        return "\n\n".join(parts) + "\n"
    first = next(iter(results.values()))
    parts.append(f"{about(first)} Random weights. " + LEGEND)
    for kind, heading in KINDS.items():
        of_kind = [each for name, each in results.items() if name.startswith(f"{kind}_")]
        if of_kind:
            parts += [f"## {heading}", *_tables(of_kind)]
    return "\n\n".join(parts) + "\n"


HEAD = """# On a GPU

```sh
make gpu
```

On a machine with an NVIDIA GPU this sets up `.venv` (pip's torch for Linux comes with CUDA; the driver must support its
version), runs the tests marked `gpu`, measures training and inference, an hour or two, and writes this page. Where
there is no such GPU it says so and ends. It goes on where it was stopped: `runs/gpu` has the results so far. One GPU is
enough; the tests that need two run where there are two.

The tests compare logits and gradients with the CPU's in fp32, bf16 and fp16, contiguous and in `channels_last`, eager
and compiled with CUDA graphs. They kill a run with deterministic kernels and resume it, which must end with the same
bits, train with DDP, FSDP and `sync_batchnorm`, predict and export.

## What to know

- `--trainer.deterministic true` makes a resumed run equal to an uninterrupted one, bit by bit, on the same GPU. It does
  not go with UPerNet, whose pooling to a grid has no deterministic kernel on a GPU; the run says so and ends.
- If the memory is not enough, the run ends with one line, which names the settings that need less: the batch size with
  `accumulate_grad_batches`, `grad_checkpointing`, and the precision."""

LEGEND = (
    "Each process has one model; its peak is what torch has taken of the GPU's memory, from the weights on. The peak "
    "speed, of which shares are given, is that of multiplying two large matrices in the same type; a training step "
    "counts as three forward passes, and recomputation does not count. Compiled inference uses CUDA graphs."
)


def _tables(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table of all groups of a kind, the speeds of the matrix products, and what was left out."""
    bodies = [benchmark_page.rows(each) for each in results]
    pixels = {(row["height"], row["width"]) for each in results for row in [*each["variants"], *each["failed"]]}
    sizes = " and ".join(f"{height}x{width}" for height, width in sorted(pixels))
    peaks: dict[str, list[float]] = {}
    for each in results:
        for precision, speed in each["matrix_product_gmacs_per_second"].items():
            peaks.setdefault(precision, []).append(speed / 1000)
    speeds = ", ".join(f"{name} {min(values):,.0f} to {max(values):,.0f}" for name, values in peaks.items())
    parts = [
        f"Images of {sizes} pixels. Matrix products in these groups reached, in T multiply-adds/s: {speeds}.",
        markdown(bodies[0][0], [row for _, body in bodies for row in body]),
    ]
    failed = [row for each in results for row in each["failed"]]
    if failed:
        names = ("model", "engine", "precision", "batch")
        cells = [[str(row[name]).rpartition(":")[2] for name in names] + [_cell(row["reason"])] for row in failed]
        parts += ["Not measured:", markdown(["Model", "Engine", "Type", "Batch", "reason"], cells)]
    return parts


def _cell(reason: str) -> str:
    """Return the beginning of a reason as a cell of a table."""
    return reason.split(". GPU")[0].replace("|", "\\|")[:150]


def require() -> None:
    """Exit with status 2 and one line if torch finds no GPU here."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = " ".join(str(error).split())
        print(f"make gpu: error: needs an NVIDIA GPU that torch {torch.__version__} can use: {reason}", file=sys.stderr)
        sys.exit(2)


def main(given: Sequence[str] | None = None, work: Work | None = None) -> None:
    """Measure, and write the results and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu"), help="the results so far")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--only", nargs="+", default=[], choices=[*groups(work or Work())], metavar="GROUP")
    parser.add_argument("--eager", action="store_true", help="without compiled models, which take minutes to prepare")
    arguments = parser.parse_args(given)
    if work is None:
        require()
    work = work or Work(compiled=not arguments.eager)
    results = measure(work, arguments.folder, arguments.rounds, arguments.only)
    write_json(arguments.docs / "results" / "gpu.json", results)
    write_text(arguments.docs / "gpu.md", page(results))


if __name__ == "__main__":
    main()
