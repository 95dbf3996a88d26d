"""Whether shared weights rank ramps as training alone does, and what the best ramps have in common.

:data:`COMMANDS` are those of the whole study. ``variants`` writes two files for ``iformer compare``: ``ranks.yaml``,
random ramps of any cost, and ``found.yaml``, the rising, flat and falling ramps of docs/results/mixer_and_ramp, random
ones of the same cost and the best one of each search. ``measure`` evaluates two kinds of ramps with the shared weights
of a search run, and goes on after a kill: those that folders of ``iformer compare`` have trained alone, for the
agreement of the ranks; and a random sample of all, for the share of attention in each block of the best ones. ``page``
writes ``README.md`` from that.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import yaml
from matplotlib.figure import Figure
from rich.progress import track
from scipy.stats import kendalltau

from iformer.common.files import write_json, write_text
from iformer.common.plotting import BLUE, ORANGE, STYLE, save_figure
from iformer.common.provenance import provenance
from iformer.models import config
from iformer.models.shared_ramps import Ramp
from iformer.search import costs as costing
from iformer.search.candidates import Candidates
from iformer.search.costs import Costs

COMMANDS = """
RESULTS=docs/results/ramp_search
iformer fit --config search/cifar10
iformer search --checkpoint runs/search/cifar10 --budget "macs<=1x" --output $RESULTS/macs
iformer search --checkpoint runs/search/cifar10 --budget "latency<=1.03x" --output $RESULTS/latency
python -m benchmarks.ramp_search variants --found $RESULTS/macs $RESULTS/latency
iformer compare --config cifar10 --variants $RESULTS/ranks.yaml --output $RESULTS/ranks --jobs 2 --trainer.max_epochs 6
iformer compare --config cifar10 --variants $RESULTS/found.yaml --output $RESULTS/found --jobs 2 --trainer.max_epochs 6
python -m benchmarks.ramp_search measure --compared $RESULTS/ranks $RESULTS/found docs/results/mixer_and_ramp/mixers
python -m benchmarks.ramp_search page
"""
"""The study, command by command; ``--compared`` takes the folders of other comparisons too."""

ABOUT = """
`iformer_nano` has 5,145 ramps. The ramp that was set by hand, which rises, and the flat and the falling one beside it
are the runs of [mixers and ramps](../mixer_and_ramp/README.md). Ramps of this size differ in latency by no more than
one measurement differs from the next, some 3 %; so the budget of latency is 1.03 times that of the ramp set by hand.
The latencies of whole networks in that search's table were measured beside other work: they can be
compared with each other only.

The shared network, the random ramps and those of the same cost were trained on one NVIDIA H200, the found ramps on two
processor cores, all in float32; the searches ran on the cores. On the cores alone the commands would take some three
and a half hours beside the runs of mixers and ramps, put together from their parts.
"""

RANDOM, OF_THE_SAME_COST, TOLERANCE = 6, 3, 0.01
"""The numbers of random ramps of any cost, and of the hand-set ramp's multiply-adds within a share of these."""

SAMPLE, BEST, RESAMPLED = 400, 0.05, 10_000
"""The size of the random sample, the share of it that is best, and the number of bootstrap samples."""

PARTS = {
    "macs": "The search at the multiply-adds of the ramp set by hand",
    "latency": "The search at its latency",
    "found": "Trained from scratch",
}
"""The folders of pages that the page refers to, and their headings."""

ADJUSTED = {"mlp_ratio"}
"""What ramps that were trained alone may differ in from the shared network besides: what equals their cost."""


def random_ramps(most: Ramp, count: int, seed: int, wanted: Callable[[Ramp], bool] = lambda ramp: True) -> list[Ramp]:
    """Return distinct random ramps that are ``wanted``, the same ones on every machine."""
    generator = np.random.default_rng(seed)
    found: dict[tuple[int, ...], None] = {}
    for _ in range(1000 * count):
        ramp = tuple(generator.integers(0, most, endpoint=True).tolist())
        if len(found) < count and wanted(ramp):
            found[ramp] = None
    return [*found]


def variants(costs: Costs, by_hand: Mapping[str, Any], found: Mapping[str, Ramp]) -> dict[str, dict[str, Any]]:
    """Return the files of variants by name: ``ranks.yaml`` and ``found.yaml``.

    Args:
        costs: The costs of all ramps.
        by_hand: The variants of ramps that were set by hand; the first is the space's own.
        found: The best ramp of each search by its name.
    """
    space = costs.space
    macs = costs.own["macs"]
    alike = random_ramps(
        space.most, OF_THE_SAME_COST, 2, lambda ramp: abs(costs.of(ramp)["macs"] / macs - 1) < TOLERANCE
    )
    ranks = {f"random_{n}": ramp for n, ramp in enumerate(random_ramps(space.most, RANDOM, 1), 1)}
    others = {**{f"alike_{n}": ramp for n, ramp in enumerate(alike, 1)}, **found}
    return {
        "ranks.yaml": {name: _variant(ramp, 1) for name, ramp in ranks.items()},
        "found.yaml": {**by_hand, **{name: _variant(ramp, 3) for name, ramp in others.items()}},
    }


def _variant(ramp: Ramp, seeds: int) -> dict[str, Any]:
    return {"model.init_args.model_args": {"attention_heads": [*ramp]}, "seeds": seeds}


def trained_alone(folders: Iterable[Path], judged: Candidates, seed: int = 0) -> list[dict[str, Any]]:
    """Return the ramps that ``iformer compare`` has trained alone, with their accuracies for one seed.

    Networks that are not in the shared one's space, such as those without max-pooling, are left out.
    """
    shared = judged.space.config
    fixed = {**shared.get("model_args", {})}
    fixed.pop("attention_heads", None)
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    for file in sorted(each for folder in folders for each in folder.glob(f"*/seed_{seed}.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        arguments = dict(result["network"].get("model_args", {}))
        ramp = tuple(arguments.pop("attention_heads", judged.space.own))
        others = {key for key in {*arguments, *fixed} if arguments.get(key) != fixed.get(key)}
        if result["network"]["architecture"] == shared["architecture"] and others <= ADJUSTED:
            each = {"variant": result["variant"], "attention_heads": [*ramp], "adjusted": sorted(others)}
            found.setdefault(ramp, {**each, "alone": result["value"]})
    return [*found.values()]


def agreement(shared: Sequence[float], alone: Sequence[float], seed: int = 0) -> dict[str, Any] | None:
    """Return Kendall's tau of two lists of accuracies, with its 95 % bootstrap interval over the ramps.

    There is none, and None is returned, for fewer than three ramps, and if all accuracies of a list are equal.
    """
    if len(shared) < 3:
        return None
    count = len(shared)
    drawn = np.random.default_rng(seed).multinomial(count, [1 / count] * count, RESAMPLED)  # how often each ramp is

    def over_pairs(values: np.ndarray) -> np.ndarray:
        return np.asarray(((drawn @ values) * drawn).sum(1), dtype=float)

    x, y = (np.sign(np.subtract.outer(values, values)) for values in (np.asarray(shared), np.asarray(alone)))
    if not x.any() or not y.any():
        return None  # all are equal
    untied = over_pairs(abs(x)) * over_pairs(abs(y))  # none in a sample of one ramp over and over
    taus = over_pairs(x * y)[untied > 0] / np.sqrt(untied[untied > 0])
    low, high = np.percentile(taus, [2.5, 97.5])
    tau = kendalltau(shared, alone).statistic
    return {"tau": float(tau), "low": float(low), "high": float(high), "ramps": count}


def shares_of_best(ramps: Sequence[Ramp], accuracies: Sequence[float], most: Ramp, seed: int = 0) -> dict[str, Any]:
    """Return attention's mean share of the channels in each block of the best ramps, with 95 % bootstrap intervals.

    Returns:
        ``mean``, ``low`` and ``high``, a value for each block; ``rise``, the same three for the rise of the straight
        line through these shares from the first block to the last; and ``best``, the number of ramps that count as
        best.
    """
    shares = np.asarray(ramps) / np.asarray(most)
    scores = np.asarray(accuracies)
    count = max(1, round(BEST * len(scores)))

    def mean(index: np.ndarray) -> np.ndarray:
        best = index[np.argsort(-scores[index], kind="stable")[:count]]
        return np.asarray(shares[best].mean(0))

    generator = np.random.default_rng(seed)
    every = np.arange(len(scores))
    resampled = np.array([mean(generator.choice(every, len(every))) for _ in range(RESAMPLED // 10)])
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    depth = np.linspace(-0.5, 0.5, len(most))

    def rise(of_blocks: np.ndarray) -> np.ndarray:
        return np.asarray(of_blocks @ depth / (depth @ depth))

    rises = np.percentile(rise(resampled), [2.5, 97.5])
    centre = mean(every)
    return {
        "best": count,
        "mean": centre.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "rise": [float(rise(centre)), *map(float, rises)],
    }


def draw(results: Mapping[str, Any]) -> Figure:
    """Draw the share of attention in each block of the best ramps, beside the ramp that was set by hand."""
    found, blocks = results["shares"], range(1, len(results["most"]) + 1)
    by_hand = [heads / most for heads, most in zip(results["hand_set"], results["most"], strict=True)]
    with matplotlib.rc_context(STYLE):
        figure = Figure((5.2, 3.2), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(blocks, found["low"], found["high"], color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(blocks, found["mean"], "o-", color=BLUE, label=f"best {found['best']} of {results['sample']} ramps")
        axes.plot(blocks, by_hand, "*--", color=ORANGE, label="set by hand")
        axes.set(xlabel="block", ylabel="share of attention, C_l / C", ylim=(0, 1))
        axes.set_xticks(blocks)
        axes.legend()
    return figure


def measure(judged: Candidates, compared: Sequence[Path], output: Path, sample: int) -> dict[str, Any]:
    """Evaluate ramps with shared weights, and write ``shared.json``, ``depth.png`` and ``results.json``."""
    space = judged.space
    alone = trained_alone(compared, judged)
    sampled = random_ramps(space.most, min(sample, space.size), 3)
    file = output / "shared.json"
    before = json.loads(file.read_text()) if file.is_file() else {}
    known: dict[str, float] = before.get("accuracies", {}) if before.get("weights") == judged.fingerprint else {}
    for ramp in track([*(each["attention_heads"] for each in alone), *sampled], "Evaluating ramps"):
        if str([*ramp]) not in known:
            known[str([*ramp])] = judged.accuracy(ramp)
            write_json(file, {"weights": judged.fingerprint, "accuracies": known})
    for each in alone:
        each["shared"] = known[str(each["attention_heads"])]
    results = {
        "model": space.config["architecture"],
        "most": [*space.most],
        "hand_set": [*space.own],
        "images": len(judged.data.val_dataloader().dataset),
        "alone": alone,
        "agreement": agreement([e["shared"] for e in alone], [e["alone"] for e in alone]),
        "sample": len(sampled),
        "shares": shares_of_best(sampled, [known[str([*ramp])] for ramp in sampled], space.most),
        **provenance(0),
    }
    save_figure(draw(results), output / "depth.png")
    write_json(output / "results.json", results)
    return results


def page(output: Path) -> str:
    """Return the page in Markdown: the sections whose files are there."""
    commands = "\n".join(f"    {line}" for line in COMMANDS.strip().splitlines())
    parts = ["# The ramp found, not set by hand", ABOUT.strip(), f"By\n\n{commands}"]
    if (output / "results.json").is_file():
        parts += _ranks(results := json.loads((output / "results.json").read_text())) + _depth(results)
    for name, title in PARTS.items():
        if (output / name / "README.md").is_file():
            parts.append(f"## {title}\n\n[Tables and figures]({name}/README.md)")
    if (output / "found" / "compare.json").is_file():
        parts.append(_found(json.loads((output / "found" / "compare.json").read_text())))
    return "\n\n".join(parts) + "\n"


def _found(results: Mapping[str, Any]) -> str:
    """Return what can be told of each ramp that was trained from scratch, beside the one that was set by hand."""
    told = []
    for variant in results["variants"]:
        if difference := variant["difference"]:
            words = "better than" if difference["mean"] > 0 else "worse than"
            certain = f"is {words}" if difference["told"] else "cannot be told from"
            points, margin = abs(100 * difference["mean"]), 100 * (difference["margin"] or 0)
            p = "none" if difference["p_corrected"] is None else f"{difference['p_corrected']:.3f}"
            told.append(
                f"- {variant['name']} {certain} {results['reference']}"
                + (
                    f" by {points:.2f} ± {margin:.2f} points"
                    if difference["told"]
                    else f": {100 * difference['mean']:+.2f} points"
                )
                + f" (corrected p {p})"
            )
    return "\n".join(told)


def _ranks(results: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {each['variant']} | {' '.join(map(str, each['attention_heads']))} | {100 * each['shared']:.2f} "
        f"| {100 * each['alone']:.2f} | {', '.join(each['adjusted'])} |"
        for each in sorted(results["alone"], key=lambda each: -each["alone"])
    ]
    found = results["agreement"]
    text = "Too few ramps were trained alone, or all are equal." if found is None else (
        f"Kendall's tau of the two accuracies is {found['tau']:.2f} (95 % bootstrap interval {found['low']:.2f} to "
        f"{found['high']:.2f}, over {found['ramps']} ramps)."
    )  # fmt: skip
    header = "| variant | attention heads | shared weights (%) | trained alone (%) | adjusted |\n|---|---|---|---|---|"
    return ["## Do shared weights rank ramps as training alone does?", text, "\n".join([header, *rows])]


def _depth(results: Mapping[str, Any]) -> list[str]:
    found = results["shares"]
    rise, low, high = found["rise"]
    told = "rises" if low > 0 else "falls" if high < 0 else "neither rises nor falls for certain"
    return [
        "## What the search prefers, block by block",
        f"Among the best {found['best']} of {results['sample']} random ramps, the share of attention {told} with "
        f"depth: the straight line through the shares changes by {rise:+.2f} (95 % bootstrap interval {low:+.2f} to "
        f"{high:+.2f}) from the first to the last block. Accuracies are those of shared weights on "
        f"{results['images']:,} images.",
        "![Share of attention against depth](depth.png)",
    ]


def main(given: Sequence[str] | None = None) -> None:
    """Run a part of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["variants", "measure", "page"])
    parser.add_argument("--run", type=Path, default=Path("runs/search/cifar10"))
    parser.add_argument("--data", default="")
    parser.add_argument("--ramps", type=Path, default=Path("docs/results/mixer_and_ramp/ramps.yaml"))
    parser.add_argument("--found", type=Path, nargs="*", default=[])
    parser.add_argument("--compared", type=Path, nargs="*", default=[])
    parser.add_argument("--sample", type=int, default=SAMPLE)
    parser.add_argument("--output", type=Path, default=Path("docs/results/ramp_search"))
    options = parser.parse_args(given)
    if options.part == "variants":
        costs = costing.counts(costing.space_of(config.read(options.run / "config.json")))
        found = {f"found_{folder.name}": _best(folder) for folder in options.found}
        by_hand = yaml.safe_load(options.ramps.read_text(encoding="utf-8"))
        for name, contents in variants(costs, by_hand, found).items():
            write_text(options.output / name, yaml.safe_dump(contents, sort_keys=False, default_flow_style=None))
    elif options.part == "measure":
        measure(Candidates(options.run, options.data), options.compared, options.output, options.sample)
    else:
        write_text(options.output / "README.md", page(options.output))


def _best(folder: Path) -> Ramp:
    ramp: Ramp = json.loads((folder / "search.json").read_text())["front"][-1]["attention_heads"]
    return ramp


if __name__ == "__main__":
    main()
