"""A variant compared with itself under other seeds does not differ, and a crippled one does: really trained runs."""

import json
from pathlib import Path

import pytest

from iformer.comparison import worker
from iformer.comparison.statistics import differences
from tests.detection.conftest import BACKBONE
from tests.training.tiny import recipe

TRIES, SEEDS = 10, 3
FOUR_STAGES = {**BACKBONE, "drop_path_rate": 0.3, "drop_rate": 0.1}  # which learn what the tiny network does not


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_a_variant_beside_itself_and_beside_a_crippled_one(tmp_path: Path) -> None:
    optimization = {"base_batch": None, "warmup_epochs": 0, "per": "step"}

    def scores(name: str, first: int, lr: float) -> dict[int, float]:
        (tmp_path / name).mkdir(exist_ok=True)
        file = recipe(
            tmp_path / name,
            model__init_args__model_args=FOUR_STAGES,
            model__init_args__optimization={**optimization, "lr": lr, "min_lr": lr, "warmup_lr": lr},
            model__init_args__mixup=0.0,
            model__init_args__cutmix=0.0,
            checkpoint__every_n_steps=None,
        )
        found = {}
        for number in range(SEEDS):
            folder = tmp_path / name / f"seed_{first + number}"
            worker.make(worker.Job(name, first + number, "accuracy", str(file), str(folder), 4))
            found[number] = json.loads(folder.with_suffix(".json").read_text())["value"]
        return found

    groups = [scores("good", SEEDS * group, 3e-3) for group in range(2 * TRIES)]
    pairs = zip(groups[::2], groups[1::2], strict=True)
    told = [differences({"it": one, "itself": other})["itself"].told for one, other in pairs]
    assert sum(told) <= 1
    print(f"found a difference from itself in {sum(told)} of {TRIES} tries")
    crippled = scores("crippled", 0, 1e-9)
    (found,) = differences({"it": groups[0], "crippled": crippled}).values()
    print(f"crippled: {100 * found.estimate.mean:+.1f} points, p {found.p:.4f}")
    assert found.told
    assert found.estimate.mean < 0
