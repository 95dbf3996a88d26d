"""The study of ``benchmarks.ramp_search``: what it trains, what it reads, and its page."""

import json
from pathlib import Path

import yaml

from benchmarks import ramp_search
from iformer.models import config
from iformer.search import costs
from iformer.search.candidates import Candidates
from tests.search.conftest import NETWORK


def test_variants_are_of_the_space_and_some_of_the_same_cost(search_run: Path, tmp_path: Path) -> None:
    (tmp_path / "macs").mkdir()
    front = [{"attention_heads": [0, 1, 2, 3]}, {"attention_heads": [1, 0, 3, 2]}]  # the best one last
    (tmp_path / "macs" / "search.json").write_text(json.dumps({"front": front}))
    folders = ["--output", str(tmp_path), "--found", str(tmp_path / "macs")]
    ramp_search.main(["variants", "--run", str(search_run), *folders])
    ranks, found = (yaml.safe_load((tmp_path / name).read_text()) for name in ("ranks.yaml", "found.yaml"))
    assert len(ranks) == 6
    assert [*found][:3] == ["iformer_nano", "flat", "falling"]
    of_the_search = {**ranks, **{name: each for name, each in found.items() if name not in [*found][:3]}}
    heads = {name: each["model.init_args.model_args"]["attention_heads"] for name, each in of_the_search.items()}
    all_costs = costs.counts(costs.space_of(config.read(search_run / "config.json")))
    own = all_costs.own["macs"]
    alike = [heads[f"alike_{number}"] for number in (1, 2, 3)]
    assert heads["found_macs"] == [1, 0, 3, 2]
    assert all(abs(all_costs.of(ramp)["macs"] / own - 1) < 0.01 for ramp in alike)


def test_ramps_that_were_trained_alone_are_ranked_by_shared_weights(search_run: Path, tmp_path: Path) -> None:
    network = config.read(search_run / "config.json")
    given = {name: value for name, value in network["model_args"].items() if name != "attention_heads"}
    alone = {
        "own": given,
        "none": {**given, "attention_heads": [0, 0, 0, 0], "mlp_ratio": 3.8},
        "all": {**given, "attention_heads": [2, 2, 3, 3]},
        "conv": {**given, "conv_ratio": 1.0},  # not in the space
    }
    for number, (name, arguments) in enumerate(alone.items()):
        (tmp_path / "compared" / name).mkdir(parents=True)
        result = {"variant": name, "value": 0.5 + number / 10, "network": {**network, "model_args": arguments}}
        (tmp_path / "compared" / name / "seed_0.json").write_text(json.dumps(result))
    judged = Candidates(search_run)
    results = ramp_search.measure(judged, [tmp_path / "compared"], tmp_path / "out", 20)
    found = {each["variant"]: each for each in results["alone"]}
    assert found.keys() == {"own", "none", "all"}
    assert found["own"]["attention_heads"] == NETWORK["attention_heads"]
    assert found["none"]["adjusted"] == ["mlp_ratio"]
    assert found["all"]["shared"] == judged.accuracy([2, 2, 3, 3])
    assert results["agreement"]["ramps"] == 3
    (tmp_path / "out" / "found").mkdir()
    variant = {"name": "found_macs", "difference": {"mean": 0.012, "margin": 0.002, "p_corrected": 0.004, "told": True}}
    compared = {"reference": "iformer_nano", "variants": [{"name": "iformer_nano", "difference": None}, variant]}
    (tmp_path / "out" / "found" / "compare.json").write_text(json.dumps(compared))
    ramp_search.main(["page", "--output", str(tmp_path / "out")])
    page = (tmp_path / "out/README.md").read_text()
    assert "Kendall's tau" in page
    assert "found_macs is better than iformer_nano by 1.20 ± 0.20 points (corrected p 0.004)" in page
    assert "![Share of attention against depth](depth.png)" in page
