"""``iformer search``: NSGA-II over the heads of each block, with the accuracy of shared weights against a cost.

The candidates are in a journal of Optuna's in the output folder, where several processes may work at once, and where
one that was killed goes on.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from iformer.common.provenance import provenance
from iformer.search import costs as costing
from iformer.search import page
from iformer.search.budgets import Budget
from iformer.search.candidates import Candidates
from iformer.search.costs import Costs, Space

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

POPULATION = 40
"""The number of candidates in a generation of NSGA-II."""

PATIENCE = 1000
"""The number of proposals in a row without a new candidate after which the search ends."""

JOURNAL, LOCK, LATENCIES = "journal.log", "search.lock", "latency.json"
"""Files in the output folder: Optuna's storage, what processes wait for each other by, and the blocks' latencies."""


def search(
    run: str | Path,
    root: str,
    budgets: Sequence[Budget],
    output: Path,
    candidates: int = 300,
    engine: str = "openvino",
    device: str = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Look for the best ramps within budgets, and write what was found into ``output``.

    Args:
        run: The folder of a search run, see :class:`iformer.search.candidates.Candidates`.
        root: The folder of the data; by default that of the run's recipe.
        budgets: What a ramp may cost. The first one's quantity is the cost in the Pareto front; multiply-adds if there
            is no budget.
        output: The folder for the search; if it holds this search already, the search goes on.
        candidates: The number of ramps to evaluate.
        engine: The engine of latencies, one of :data:`iformer.search.costs.ENGINES`.
        device: The device on which ramps are evaluated.
        seed: The seed of the search.

    Returns:
        The contents of ``search.json``.

    Raises:
        ValueError: There is no such run, no choice within the budgets, or ``output`` holds another search.
        OSError: A file is missing, or cannot be read or written.
    """
    if engine not in costing.ENGINES:
        raise ValueError(f"engine is {engine!r}, expected one of {', '.join(costing.ENGINES)}")
    judged = Candidates(run, root, device)
    costs = costing.counts(judged.space)
    output.mkdir(parents=True, exist_ok=True)
    if any(budget.quantity == "latency" for budget in budgets):
        costs = costing.with_latency(costs, engine, output / LATENCIES, judged.fingerprint)
    budgets = [budget.against(costs.own) for budget in budgets]
    choice = costs.require_choice(budgets)
    quantity = budgets[0].quantity if budgets else "macs"
    settings = {
        "weights": judged.fingerprint,
        "images": len(judged.data.val_dataloader().dataset),
        "budgets": [budget.text for budget in budgets],
        "engine": engine if "latency" in costs.own else None,
        "seed": seed,
    }
    cheapest = [costs.least(kind) for kind in dict.fromkeys((quantity, *(budget.quantity for budget in budgets)))]
    study = _study(output, settings, [judged.space.own, *_plain_ramps(judged.space), *cheapest])
    _evaluate(study, judged, costs, budgets, quantity, min(candidates, choice or candidates))
    with FileLock(output / LOCK):
        return _finish(study, judged, costs, budgets, quantity, output, settings)


def _study(output: Path, settings: Mapping[str, Any], first: Sequence[Sequence[int]]) -> Any:
    """Return the study in the output folder, which is created unless it is there, with the ramps to begin with.

    Raises:
        ValueError: The folder holds another search.
    """
    file = output / JOURNAL
    with FileLock(output / LOCK), _quiet():
        backend = JournalFileBackend(str(file), lock_obj=JournalFileOpenLock(str(file)))
        study = optuna.create_study(
            study_name="ramps",
            storage=optuna.storages.JournalStorage(backend),
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
        before = study.user_attrs.get("settings", settings)
        for key, value in settings.items():
            if before[key] != value:
                raise ValueError(
                    f"{output}: holds a search with {key} {before[key]}, now it is {value}; name another --output"
                )
        process = study.user_attrs.get("processes", 0)
        study.set_user_attr("settings", settings)
        study.set_user_attr("processes", process + 1)
        # Each process draws other proposals, and so does one that goes on.
        state = np.random.SeedSequence((settings["seed"], process)).generate_state(1)
        study.sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=int(state[0]))
        if not process:
            for ramp in first:
                study.enqueue_trial(_parameters(ramp), skip_if_exists=True)
    return study


def _plain_ramps(space: Space) -> list[tuple[int, ...]]:
    """Return the ramps without attention, with half of the heads everywhere, and of attention alone."""
    return [tuple(round(share * heads) for heads in space.most) for share in (0, 0.5, 1)]


def _parameters(ramp: Sequence[int]) -> dict[str, int]:
    return {f"block {number}": heads for number, heads in enumerate(ramp, 1)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what Optuna says about studies and trials, which the progress bar shows."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def evaluated(study: Any) -> dict[tuple[int, ...], float]:
    """Return the accuracies of the ramps that have been evaluated."""
    finished = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    return {
        tuple(trial.user_attrs["ramp"]): trial.user_attrs["accuracy"]
        for trial in finished
        if trial.user_attrs.get("accuracy") is not None
    }


def _evaluate(
    study: Any, judged: Candidates, costs: Costs, budgets: Sequence[Budget], quantity: str, wanted: int
) -> None:
    """Evaluate ramps within the budgets until there are ``wanted`` of them in the study."""
    columns = [TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn()]
    with (
        _quiet(),
        Progress(
            *columns,
            TextColumn("{task.fields[best]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=1,
            speed_estimate_period=1e6,
        ) as bar,
    ):
        line = bar.add_task("Evaluating ramps", total=wanted, best="")
        idle = 0
        while True:
            known = evaluated(study)
            fitting = {ramp: accuracy for ramp, accuracy in known.items() if _fits(costs.of(ramp), budgets)}
            best = f"best {max(fitting.values()):.4f}" if fitting else ""
            bar.update(line, completed=len(fitting), best=best)
            if len(fitting) >= wanted or idle >= PATIENCE:
                return
            idle = 0 if _propose(study, judged, costs, budgets, quantity, known) else idle + 1


def _propose(
    study: Any,
    judged: Candidates,
    costs: Costs,
    budgets: Sequence[Budget],
    quantity: str,
    known: Mapping[tuple[int, ...], float],
) -> bool:
    """Take a proposal of Optuna's, evaluate it unless it is known or too expensive, and return whether it was."""
    trial = study.ask()
    ramp = tuple(trial.suggest_int(name, 0, most) for name, most in _parameters(judged.space.most).items())
    cost = costs.of(ramp)
    for budget in budgets:
        trial.set_constraint(budget.quantity, budget.excess(cost))
    accuracy = known.get(ramp)
    new = accuracy is None and (_fits(cost, budgets) or ramp == judged.space.own)
    if new:
        accuracy = judged.accuracy(ramp)
    trial.set_user_attr("ramp", [*ramp])
    trial.set_user_attr("accuracy", accuracy)
    # The values of a ramp beyond a budget do not count: NSGA-II compares such ramps by how far they are beyond it.
    study.tell(trial, [accuracy or 0.0, cost[quantity]])
    return new


def _fits(cost: Mapping[str, float], budgets: Sequence[Budget]) -> bool:
    return all(budget.excess(cost) <= 0 for budget in budgets)


def pareto(points: Mapping[tuple[int, ...], tuple[float, float]]) -> list[tuple[int, ...]]:
    """Return the ramps than which none is both as accurate and as cheap, and better in one; the cheapest first.

    Args:
        points: The accuracy and the cost of each ramp.
    """
    front: list[tuple[int, ...]] = []
    best = -1.0
    for ramp in sorted(points, key=lambda each: (points[each][1], -points[each][0])):
        if points[ramp][0] > best:
            front.append(ramp)
            best = points[ramp][0]
    return front


def _finish(
    study: Any,
    judged: Candidates,
    costs: Costs,
    budgets: Sequence[Budget],
    quantity: str,
    output: Path,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Measure the best ramps, evaluate them on the test images, and write the results.

    What an earlier process wrote of the same candidates is kept; no ramp is evaluated on the test images again.

    Raises:
        ValueError: No ramp within the budgets was found.
    """
    known, own = evaluated(study), judged.space.own
    if own not in known:  # the process that began with it was killed
        known[own] = judged.accuracy(own)
    file = output / page.RESULTS
    tests: dict[tuple[int, ...], float | None] = {}
    if file.is_file():
        before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if len(before["evaluated"]) == len(known):
            return before
        tests = {
            tuple(each["attention_heads"]): each["test_accuracy"] for each in (before["hand_set"], *before["front"])
        }
    all_costs = {ramp: costs.of(ramp) for ramp in known}
    points = {
        ramp: (accuracy, all_costs[ramp][quantity])
        for ramp, accuracy in known.items()
        if _fits(all_costs[ramp], budgets)
    }
    if not points:
        texts = ", ".join(budget.text for budget in budgets)
        raise ValueError(f"budget {texts}: no ramp within all of them was found; loosen one")
    front = pareto(points)
    shown = list(dict.fromkeys([own, *front]))
    new = [ramp for ramp in shown if ramp not in tests]
    accuracies: Sequence[float | None] = judged.test_accuracies([*new]) or [None] * len(new)
    tests.update(zip(new, accuracies, strict=True))
    latencies = costing.measure(judged.space, shown, settings["engine"]) if settings["engine"] else {}
    about = {
        ramp: {
            "attention_heads": [*ramp],
            "validation_accuracy": known[ramp],
            "test_accuracy": tests[ramp],
            **all_costs[ramp],
            **({"measured_latency": latencies[str([*ramp])]} if latencies else {}),
            "arguments": _arguments(judged, ramp),
        }
        for ramp in shown
    }
    document = {
        "model": judged.space.config["architecture"],
        "run": str(judged.run),
        "space": {"blocks": [*judged.space.most], "stages": [*judged.space.depths], "ramps": judged.space.size},
        "cost": quantity,
        "limit": budgets[0].most if budgets else None,
        **settings,
        "hand_set": about[own],
        "front": [about[ramp] for ramp in front],
        "evaluated": [
            {"attention_heads": [*ramp], "validation_accuracy": accuracy, **all_costs[ramp]}
            for ramp, accuracy in known.items()
        ],
        "definitions": page.NOTES,
        **provenance(int(settings["seed"])),
    }
    page.write(output, document)
    return document


def _arguments(judged: Candidates, ramp: Sequence[int]) -> str:
    """Return the argument of ``iformer fit`` that makes the run's network one with a ramp."""
    given = (judged.settings.get("model") or {}).get("init_args", {}).get("model_args") or {}
    values = {**given, "attention_heads": [*ramp]}
    text = ", ".join(f"{name}: {json.dumps(value)}" for name, value in values.items())
    return f"--model.init_args.model_args '{{{text}}}'"
