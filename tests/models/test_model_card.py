"""The model card, made of what a model's folder holds."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from iformer.models import model_card, saved
from tests.networks import NARROW


def folder(place: Path, names: list[str], **settings: Any) -> Path:
    """A saved classifier of a run with these classes and settings of its recipe."""
    saved.save(timm.create_model("iformer_nano", num_classes=len(names), **NARROW), place, names)
    (place / "recipe.yaml").write_text(json.dumps(settings))
    return place


def test_names_are_text_and_places_are_not_told(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "a|b`c*_d_", model_card.END, "\x1b[2J", "猫"]
    settings: dict[str, Any] = {
        "data": {"init_args": {"root": "/home/eve/a_b*c"}},
        "model": {"init_args": {"pretrained": "~/w.pth"}},
        "trainer": {"default_root_dir": "/home/eve/runs", "logger": {"token": "secret"}, "max_epochs": 3},
    }
    place = folder(tmp_path, names, **settings)
    command = "iformer fit --config /home/eve/r.yaml --data.init_args.root=/home/eve/a"
    training = {"command": command, "images": 3, "epochs": 1, "steps": 2, "seed": 0, "machine": "m", "python": "3",
                "versions": {}}  # fmt: skip
    (place / "evaluations.json").write_text(json.dumps({"training": training}))
    text = model_card.card(place)
    assert not re.search(r"\beve\b|secret|<script|\x1b", text)
    assert text.count(model_card.END) == 1
    assert "iformer fit --config r.yaml --data.init_args.root=a\n" in text
    shown = MarkdownIt().enable("table").render(ModelCard(text).text)
    assert "trained on a_b*c</h1>" in shown
    assert "a|b`c*_d_" in shown
    assert "<td>w.pth</td>" in shown


def test_what_the_hub_finds_it_by(tmp_path: Path) -> None:
    data = {"init_args": {"reader": "hfds/someone/birds", "root": ""}}
    place = folder(tmp_path, ["a", "b"], data=data, model={"init_args": {"pretrained": "hf-hub:someone/base@v1"}})
    (place / "evaluations.json").write_text(json.dumps({"test": {"metrics": {"accuracy": 0.5}, "command": "x"}}))
    data = ModelCard(model_card.card(place, licence="apache-2.0")).data
    assert (data.datasets, data.base_model, data.license) == (["someone/birds"], "someone/base", "apache-2.0")
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_value, data.model_name) == ("someone/birds", 0.5, "iformer_nano")


def test_metadata_that_are_damaged_are_named(tmp_path: Path) -> None:
    place = folder(tmp_path, ["a", "b"])
    (place / "README.md").write_text(f"---\nlicense: [\n---\n{model_card.BEGIN}{model_card.END}")
    with pytest.raises(ValueError, match=rf"^{place}/README\.md: its metadata are not valid \(") as error:
        model_card.card(place)
    assert "\n" not in str(error.value)
