"""What a run leaves beside its model: the figures, and the card that shows them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from iformer.models import model_card
from iformer.training.launcher import run
from tests.training.tiny import TinyData, recipe

QUICK: dict[str, Any] = {"trainer__max_epochs": 2, "data__init_args": {"length": 8}}
SAME = "the test images seem to be those of the validation"


def card_of(folder: Path) -> ModelCard:
    return ModelCard((folder / "README.md").read_text())


def figures(card: ModelCard) -> dict[tuple[str, str], float]:
    """The metrics in the card's metadata, by split and name."""
    return {(each.dataset_split, each.metric_name): each.metric_value for each in card.data.eval_results or []}


def test_a_run_and_its_test_write_it(tmp_path: Path) -> None:
    arguments = ["--config", str(recipe(tmp_path, **QUICK))]
    trained = run("fit", arguments)["metrics"]
    card = card_of(tmp_path / "run")
    assert (card.data.pipeline_tag, card.data.library_name, card.data.license) == (
        "image-classification", "timm", "unknown",
    )  # fmt: skip
    assert figures(card) == {
        ("validation", "accuracy"): trained["val_accuracy"], ("validation", "top5"): trained["val_top5"],
    }  # fmt: skip
    for told in ("4 classes: class 0, class 1", "training began with | random weights", "8 images, 2 epochs, 4 steps",
                 "other images have not been tested", "mixup: 0.8"):  # fmt: skip
        assert told in card.text
    tested = run("test", [*arguments, "--resume", "--verbose=false"])["metrics"]
    card = card_of(tmp_path / "run")
    assert figures(card)["test", "accuracy"] == tested["test_accuracy"]
    assert f"| `loss` | {trained['val_loss']:.4f} | {tested['test_loss']:.4f} |" in card.text
    assert "other images have not been tested" not in card.text
    assert SAME in card.text  # they are in this data, which does not tell
    assert "[per_class.csv](per_class.csv)" in card.text
    kept = (tmp_path / "run/README.md").read_bytes()
    run("fit", [*arguments, "--resume"])  # at its end
    assert (tmp_path / "run/README.md").read_bytes() == kept


def test_what_a_user_has_written_stays(tmp_path: Path) -> None:
    arguments = ["--config", str(recipe(tmp_path, **QUICK))]
    run("fit", arguments)
    file = tmp_path / "run/README.md"
    text = file.read_text().replace("license: unknown", "license: mit\nlanguage: de")
    text = re.sub(
        "To be written by .*", "For birds only.", text.replace(model_card.BEGIN, f"Mine.\n{model_card.BEGIN}")
    )
    file.write_text(text.replace("Limits", "Gone"))
    run("test", [*arguments, "--resume", "--verbose=false"])
    card = card_of(tmp_path / "run")
    assert (card.data.license, card.data.language) == ("mit", "de")
    assert card.text.startswith(f"Mine.\n{model_card.BEGIN}")
    assert card.text.endswith("For birds only.\n")
    assert ("Limits" in card.text, "Gone" in card.text) == (True, False)
    assert {split for split, _ in figures(card)} == {"validation", "test"}
    file.write_text("# My page\n")
    run("test", [*arguments, "--resume", "--verbose=false"])
    assert file.read_text() == "# My page\n"
    mine = ModelCard(model_card.card(tmp_path / "run", licence="mit"))
    assert (mine.data.license, mine.data.library_name, mine.text.strip()) == ("mit", "timm", "# My page")


def test_only_the_figures_of_the_folders_model_are_in_it(tmp_path: Path) -> None:
    file = recipe(tmp_path, **QUICK, checkpoint__keep=9)
    run("fit", ["--config", str(file)])
    kept = (tmp_path / "run/README.md").read_bytes()
    run("test", ["--config", str(file), "--verbose=false"])  # random weights
    earlier = sorted((tmp_path / "run/checkpoints").glob("*.ckpt"))[0]
    run("test", ["--config", str(file), "--verbose=false", "--ckpt_path", str(earlier)])
    assert (tmp_path / "run/README.md").read_bytes() == kept
    run("validate", ["--config", str(file), "--verbose=false", "--resume"])
    assert set(figures(card_of(tmp_path / "run"))) == {("validation", "accuracy"), ("validation", "top5")}


def test_it_says_to_which_step_the_figures_belong(tmp_path: Path) -> None:
    file = recipe(tmp_path, **{**QUICK, "trainer__max_epochs": 3}, trainer__check_val_every_n_epoch=2,
                  trainer__limit_val_batches=1)  # fmt: skip
    run("fit", ["--config", str(file)])
    assert "The validation was made after 4 of 6 steps." in card_of(tmp_path / "run").text
    assert "| | validation |\n" in card_of(tmp_path / "run").text  # how many images a batch holds is not known
    (tmp_path / "best").mkdir()
    file = recipe(tmp_path / "best", **QUICK, checkpoint__best=True)
    run("fit", ["--config", str(file)])
    best = json.loads((tmp_path / "best/run/best.json").read_text())
    card = card_of(tmp_path / "best/run")
    assert f"those of the best validation, after {best['step']} steps" in card.text
    assert figures(card) == {("validation", "accuracy"): best["value"]}


def test_where_the_data_tells_which_images_it_tests_on_figures_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--config", str(recipe(tmp_path, **QUICK))]
    run("fit", arguments)
    for has_test, splits in ((False, {"validation"}), (True, {"validation", "test"})):
        monkeypatch.setattr(TinyData, "has_test", has_test)
        run("test", [*arguments, "--resume", "--verbose=false"])
        card = card_of(tmp_path / "run")
        assert {split for split, _ in figures(card)} == splits
        assert SAME not in card.text
