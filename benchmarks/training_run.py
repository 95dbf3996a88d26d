"""The page of a training run in docs/results/: its curve, its figures and the commands, from the run's own files.

    iformer fit --config cifar10
    iformer test --config cifar10 --resume --json --model.init_args.confusion true > runs/cifar10/test.json
    python -m benchmarks.training_run runs/cifar10 docs/results/cifar10

Copies metrics.csv and what the test has written, draws curve.png and writes README.md. The duration is the time between
the first and the last event of the TensorBoard log.
"""

import argparse
import csv
import json
import shutil
from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

COPIED = ("metrics.csv", "test.json", "recipe.yaml", "confusion.csv", "confusion.png", "per_class.csv")

Series = list[tuple[float, float]]


def read(file: Path) -> dict[str, Series]:
    """Of each column of ``metrics.csv`` the values, with the optimiser steps made before them."""
    columns: dict[str, Series] = {}
    with open(file, newline="") as opened:
        for row in csv.DictReader(opened):
            for name, value in row.items():
                if name not in ("step", "epoch") and value:
                    columns.setdefault(name, []).append((int(row["step"]) + 1, float(value)))
    return columns


def duration(folder: Path) -> float:
    """Seconds between the first and the last event of a run that was not interrupted."""
    (file,) = folder.glob("events.out.tfevents.*")
    events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
    times = [event.wall_time for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
    return max(times) - min(times)


def draw(columns: dict[str, Series], steps_per_epoch: float, file: Path) -> None:
    """Loss of training, accuracy on the images held out, and the learning rate, by epoch."""
    panels = [("loss", "training loss"), ("val_accuracy", "top-1 accuracy"), ("lr", "learning rate")]
    figure = Figure((9, 2.8), layout="constrained")
    for axes, (column, label) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        steps, values = zip(*columns[column], strict=True)
        axes.plot([step / steps_per_epoch for step in steps], values, color="#0072b2", linewidth=1)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)


def page(name: str, columns: dict[str, Series], seconds: float, test: dict) -> str:
    """The text."""
    metrics, rates = test["metrics"], sorted(value for _, value in columns["images/s"])
    best = max(value for _, value in columns["val_accuracy"])
    rows = {
        "test top-1, last epoch": f"**{metrics['test_accuracy']:.2%}**",
        "test top-5": f"{metrics['test_top5']:.2%}",
        "test loss": f"{metrics['test_loss']:.3f}",
        "best epoch's top-1 on the images that the curve shows": f"{best:.2%}",
        "epochs": f"{len(columns['val_accuracy'])}",
        "time, evaluations included": f"{seconds / 60:.0f} min",
        "images/s in training: median (lowest, highest)": f"{rates[len(rates) // 2]:.0f} "
        f"({rates[0]:.0f}, {rates[-1]:.0f})",
        "seed": f"{test['seed']}",
        "machine": test["machine"],
        "versions": ", ".join(f"{key} {value}" for key, value in test["versions"].items()),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""# {name}

Written by `python -m benchmarks.training_run`; every figure comes from the run's files beside this page.

    iformer fit --config {name}
    {test["command"]}

| | |
|---|---|
{table}

![Loss, accuracy and learning rate by epoch](curve.png)

![Confusion matrix](confusion.png)
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run, with test.json")
    parser.add_argument("output", type=Path, help="folder of the page")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copyfile(arguments.run / name, arguments.output / name)
    columns = read(arguments.run / "metrics.csv")
    test = json.loads((arguments.run / "test.json").read_text())
    last_step = columns["val_accuracy"][-1][0]
    draw(columns, last_step / len(columns["val_accuracy"]), arguments.output / "curve.png")
    text = page(test["recipe"], columns, duration(arguments.run), test)
    (arguments.output / "README.md").write_text(text)


if __name__ == "__main__":
    main()
