"""The page of training runs in docs/results/: curves, figures and commands, from the runs' own files.

    iformer fit --config cifar10
    iformer test --config cifar10 --resume --json --model.init_args.confusion true > runs/cifar10/test.json
    python docs/run_page.py docs/results/cifar10 runs/cifar10 --metric val_accuracy

Several runs are put side by side. Copies each run's metrics.csv, recipe.yaml and what its test has written, draws
curve.png and writes README.md. The duration is the time between the first and the last event of the TensorBoard log.
"""

import argparse
import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from iformer.common.files import write_text
from iformer.common.plotting import BLUE, GREEN, ORANGE, save_figure

COPIED = ("test.json", "recipe.yaml", "confusion.csv", "per_class.csv")
COLOURS = (BLUE, ORANGE, GREEN)

Series = list[tuple[float, float]]


def history(folder: Path) -> list[Path]:
    """Return the run's files of metrics: those from before each resumption, then the last."""
    return [*sorted(folder.glob("metrics-*.csv")), folder / "metrics.csv"]


def read(folder: Path) -> dict[str, Series]:
    """Return the values of each column of the run's metrics, with the optimiser steps made before them."""
    columns: dict[str, dict[float, float]] = {}
    for file in history(folder):
        with open(file, newline="") as opened:
            for row in csv.DictReader(opened):
                for name, value in row.items():
                    if name not in ("step", "epoch") and value:
                        columns.setdefault(name, {})[int(row["step"]) + 1] = float(value)
    return {name: sorted(values.items()) for name, values in columns.items()}


def minutes(folder: Path) -> float:
    """Return the minutes of training, without the pauses of a run that was interrupted."""
    total = 0.0
    for file in folder.glob("events.out.tfevents.*"):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        times = [event.wall_time for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
        total += max(times) - min(times)
    return total / 60


def smooth(values: list[float]) -> list[float]:
    """Return a moving average with exponential weights, which reaches farther back the more values there are."""
    memory = min(0.9, max(0.0, 1 - 20 / len(values)))
    averages = values[:1]
    for value in values[1:]:
        averages.append(memory * averages[-1] + (1 - memory) * value)
    return averages


def draw(runs: dict[str, dict[str, Series]], metrics: list[str], file: Path) -> None:
    """Draw the training loss (smoothed), the metrics on the images held out and the learning rate over the steps."""
    columns = ["loss", *metrics, "lr"]
    figure = Figure((3.2 * len(columns), 2.8), layout="constrained")
    for axes, column in zip(figure.subplots(1, len(columns)), columns, strict=True):
        for (name, run), colour in zip(runs.items(), COLOURS, strict=False):
            steps, values = map(list, zip(*run[column], strict=True))
            if column == "loss":
                axes.plot(steps, values, color=colour, linewidth=0.5, alpha=0.25)
                values = smooth(values)
            axes.plot(steps, values, color=colour, linewidth=1.2, marker="." if len(values) < 60 else "", label=name)
        label = {"loss": "training loss", "lr": "learning rate"}.get(
            column, column.replace("_", " ").replace(" ap50", " AP50").replace("miou", "mIoU")
        )
        axes.set(xlabel="optimiser steps", ylabel=label)
        axes.grid(alpha=0.3)
    if len(runs) > 1:
        figure.axes[0].legend(frameon=False, fontsize=8)
    save_figure(figure, file)


def figures(folder: Path, columns: dict[str, Series], test: dict[str, Any]) -> dict[str, str]:
    """Return the rows of the table for one run."""
    rates = sorted(value for _, value in columns["images/s"])
    rows = {f"`{name}`": f"{value:.4f}" for name, value in test["metrics"].items()}
    return rows | {
        "optimiser steps": f"{int(max(step for step, _ in columns['loss'])):,}",
        "time, evaluations included": f"{minutes(folder):.0f} min",
        "images/s in training: median (lowest, highest)": f"{rates[len(rates) // 2]:,.1f} "
        f"({rates[0]:,.1f}, {rates[-1]:,.1f})",
        "seed": f"{test['seed']}",
        "machine": test["machine"],
        "versions": ", ".join(f"{key} {value}" for key, value in test["versions"].items()),
    }


def classes(tests: dict[str, dict[str, Any]]) -> list[str]:
    """Return the table of each class's figures in the tests, the runs side by side."""
    rows: dict[str, dict[str, Any]] = {}
    for name, test in tests.items():
        for row in test.get("per_class", []):
            values = {f"{key}, {name}" if len(tests) > 1 else key: row[key] for key in row if key != "class"}
            rows.setdefault(row["class"], {}).update(values)
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    if not keys:
        return []
    table = [f"| class | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    return [
        *table,
        *(f"| {name} | {' | '.join(str(row.get(key, '')) for key in keys)} |" for name, row in rows.items()),
    ]


def page(title: str, commands: list[str], columns: dict[str, dict[str, str]], rest: list[str]) -> str:
    """Return the page: commands, a table with a column for each run, and the rest."""
    names = list(columns)
    keys = dict.fromkeys(key for rows in columns.values() for key in rows)
    table = [f"| | {' | '.join(names) if len(names) > 1 else ''} |", "|---" * (len(names) + 1) + "|"]
    table += [f"| {key} | {' | '.join(columns[name].get(key, '') for name in names)} |" for key in keys]
    source = "By `python docs/run_page.py`; every figure comes from the runs' files beside this page."
    indented = [f"    {command}" for command in commands]
    return "\n".join([f"# {title}\n", f"{source}\n", *indented, "", *table, "", *rest])


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder of the page")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, each with test.json")
    parser.add_argument("--metric", action="append", required=True, help="columns of metrics.csv to draw")
    parser.add_argument("--picture", action="append", type=Path, default=[], help="other files to show")
    parser.add_argument("--note", default="", help="what a reader must know of the circumstances")
    arguments = parser.parse_args()
    curves, columns, tests, commands, pictures = {}, {}, {}, [], []
    for run in arguments.runs:
        folder = arguments.output / run.name if len(arguments.runs) > 1 else arguments.output
        folder.mkdir(parents=True, exist_ok=True)
        images = sorted(run.glob("*.png"))
        for file in [*history(run), *(run / name for name in COPIED if (run / name).is_file()), *images]:
            shutil.copyfile(file, folder / file.name)
        pictures += [str((folder / image.name).relative_to(arguments.output)) for image in images]
        test = tests[run.name] = json.loads((run / "test.json").read_text())
        curves[run.name] = read(run)
        columns[run.name] = figures(run, curves[run.name], test)
        commands += [re.sub("(test|validate)", "fit", test["command"], count=1).split(" --resume")[0], test["command"]]
    for picture in arguments.picture:
        shutil.copyfile(picture, arguments.output / picture.name)
        pictures.append(picture.name)
    draw(curves, arguments.metric, arguments.output / "curve.png")
    rest = [f"{arguments.note}\n"] if arguments.note else []
    rest += [f"![{Path(picture).stem}]({picture})\n" for picture in ["curve.png", *pictures]]
    text = page(arguments.output.name, commands, columns, [*rest, *classes(tests), ""])
    write_text(arguments.output / "README.md", text)


if __name__ == "__main__":
    main()
