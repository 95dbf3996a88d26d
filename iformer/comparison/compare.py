"""``iformer compare``: the runs of a comparison, what is measured once of each variant, and the pages."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iformer.comparison import costs, page, runs
from iformer.comparison.variants import Variant


def compare(variants: Sequence[Variant], output: Path, at_a_time: int = 1) -> dict[str, Any]:
    """Make the runs whose result files are missing, and write the comparison of all that have one.

    Leaves in ``output`` a folder for each variant, with its recipe, a folder for each run and its result file beside
    it; ``latency.json``; and ``compare.json``, the figures and the pages ``README.md`` and ``compare.html``.

    Args:
        variants: The variants, the reference first, see :func:`iformer.comparison.variants.read`.
        output: The folder of the comparison, which is created if it does not exist.
        at_a_time: The number of runs at a time.

    Returns:
        The contents of ``compare.json``.

    Raises:
        ValueError: ``output`` has runs by other recipes, or not one run of the reference could be made.
        OSError: ``output`` cannot be written.
        KeyboardInterrupt: Ctrl-C; the runs have saved what they did.
    """
    jobs = runs.jobs_of(variants, output)
    failed = runs.make(jobs, at_a_time)
    results: dict[str, list[dict[str, Any]]] = {variant.name: [] for variant in variants}
    for job in jobs:
        if job.result.is_file():
            result = json.loads(job.result.read_text(encoding="utf-8"))
            command = shlex.join(["iformer", "fit", *job.arguments])  # here, wherever the run was made
            results[job.variant].append({**result, "command": command})
    reference = variants[0].name
    if not results[reference]:
        message = next(f"{job.label}: {message}" for job, message in failed.items() if job.variant == reference)
        raise ValueError(f"{reference}: there is no run of it to compare with ({message})")
    results = {name: found for name, found in results.items() if found}
    networks = {name: found[0]["network"] for name, found in results.items()}
    document = page.document(results, costs.kept_latencies(networks, output / "latency.json"))
    document["failed"] = [
        {"variant": job.variant, "seed": job.seed, "reason": message, "log": str(Path(job.folder, runs.LOG))}
        for job, message in failed.items()
    ]
    page.write(output, document)
    return document
