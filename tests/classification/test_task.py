"""The classification task."""

import csv
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor

from iformer.classification.task import ClassificationTask
from iformer.common.plotting import confusion_matrix, save_figure
from iformer.models import saved
from iformer.training import checkpoints, launcher
from iformer.training.launcher import run
from iformer.training.optimization import AdamWCosine
from tests.conftest import Command
from tests.training.tiny import MODEL, TinyData, log_of, recipe


def task(**arguments: object) -> ClassificationTask:
    return ClassificationTask("iformer_nano", **{"num_classes": 4, "model_args": MODEL, **arguments})  # type: ignore[arg-type]


def evaluate(folder: Path, trained: ClassificationTask, data: TinyData) -> dict[str, float]:
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        use_distributed_sampler=False,
    )
    (results,) = trainer.test(trained, datamodule=data, verbose=False)
    return dict(results)


def test_evaluation_agrees_with_a_plain_computation(tmp_path: Path) -> None:
    data, trained = TinyData(length=30, classes=7), task(num_classes=7, confusion=True)
    results = evaluate(tmp_path, trained, data)
    loader = data.test_dataloader()
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    with torch.no_grad():
        logits = trained.eval()(images)
    assert results["test_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    best = logits.argsort(1, descending=True)
    assert results["test_accuracy"] == pytest.approx((best[:, 0] == labels).float().mean().item())
    assert results["test_top5"] == pytest.approx((best[:, :5] == labels[:, None]).any(1).float().mean().item())
    with open(tmp_path / "confusion.csv") as file:
        head, *rows = csv.reader(file)
    assert head == ["true", *data.class_names]
    counts = torch.tensor([[int(value) for value in row[1:]] for row in rows])
    assert torch.equal(counts, torch.stack([(best[labels == i, 0]).bincount(minlength=7) for i in range(7)]))
    with open(tmp_path / "per_class.csv") as file:
        found = {row["class"]: row for row in csv.DictReader(file)}
    assert int(found["class 1"]["images"]) == int((labels == 1).sum())
    assert float(found["class 1"]["accuracy"]) == pytest.approx(counts[1, 1].item() / counts[1].sum().item(), abs=1e-4)


def test_vectors_and_position_embeddings_are_not_decayed() -> None:
    model = task().model
    kept, decayed = AdamWCosine(weight_decay=0.05).parameter_groups(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (kept["weight_decay"], decayed["weight_decay"]) == (0, 0.05)
    assert {names[id(parameter)] for parameter in kept["params"]} == {
        name for name, parameter in model.named_parameters() if parameter.ndim == 1 or "pos_embed" in name
    }
    assert len(kept["params"]) + len(decayed["params"]) == len(names)


def test_layers_learn_the_faster_the_nearer_they_are_to_the_head() -> None:
    model = task().model
    groups = AdamWCosine(layer_decay=0.5).parameter_groups(model)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    order = [model.stem.conv1.weight, model.stages[0].blocks[0].norm1.weight, model.stages[1].blocks[0].norm1.weight]
    scales = [scale[id(parameter)] for parameter in [*order, model.head.fc.weight]]
    assert scales == sorted(set(scales))
    assert scales[-1] == 1


def test_a_run_of_one_epoch_follows_the_cosine_and_nothing_complains(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optimization = {"lr": 1.0, "min_lr": 0.2, "base_batch": None, "warmup_epochs": 0, "per": "step"}
    file = recipe(tmp_path, model__init_args__optimization=optimization, trainer__max_epochs=1,
                  data__init_args={"length": 16}, trainer__log_every_n_steps=1)  # fmt: skip
    run("fit", ["--config", str(file)])
    rates = [float(row["lr"]) for row in log_of(tmp_path / "run") if row["lr"]]
    assert rates == pytest.approx([0.6 + 0.4 * math.cos(math.pi * step / 4) for step in range(4)])
    assert "osine" not in caplog.text


def test_label_smoothing_and_mixup_are_in_the_loss() -> None:
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    trained = task(label_smoothing=0.2)
    trained.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    expected = F.cross_entropy(trained(images), F.one_hot(labels, 4) * 0.8 + 0.05)
    torch.testing.assert_close(trained.training_step((images, labels), 0), expected)

    mixing = task(mixup=1.0, label_smoothing=0.0)
    mixing.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    mixing.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 4))
    loss = mixing.training_step((images, labels), 0)
    assert not torch.allclose(loss, F.cross_entropy(mixing(images), labels))


def test_averaged_weights_are_evaluated_and_exported(tmp_path: Path) -> None:
    """With a decay of 1, the average stays what the weights were after the first step."""
    ema = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 1.0}}
    for name, steps, callbacks in (("one", 1, []), ("ema", 5, [ema])):
        (tmp_path / name).mkdir()
        file = recipe(tmp_path / name, trainer__callbacks=callbacks, trainer__max_steps=steps)
        run("fit", ["--config", str(file)])
    one, averaged = (saved.resolve(tmp_path / name / "run").network.state_dict() for name in ("one", "ema"))
    assert all(torch.equal(one[name], averaged[name]) for name in one if one[name].is_floating_point())


OPTIONS: dict[str, Callable[[ClassificationTask, dict[str, Any]], bool]] = {  # and how to tell that it is in effect
    "--model.init_args.grad_checkpointing=true": lambda task, _: all(
        s.blocks.grad_checkpointing for s in task.model.stages
    ),
    "--model.init_args.channels_last=false": lambda task, seen: (
        contiguous(seen["images"]) and contiguous(task.model.stem.conv1.weight)
    ),
    "--trainer.precision=bf16-mixed": lambda _, seen: seen["logits"].dtype == torch.bfloat16,
    "--trainer.gradient_clip_val=0.1": lambda task, _: gradient_norm(task) == pytest.approx(0.1, rel=1e-3),
}


def contiguous(images: Tensor) -> bool:
    return images.is_contiguous() and not images.is_contiguous(memory_format=torch.channels_last)


def gradient_norm(module: torch.nn.Module) -> float:
    return torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]).item()


@pytest.mark.parametrize("option", OPTIONS)
def test_options_train(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, seen, effects = ClassificationTask.forward, {}, []

    def watched_forward(self: ClassificationTask, images: Tensor) -> Tensor:
        handle = self.model.register_forward_pre_hook(lambda _, inputs: seen.update(images=inputs[0]))
        seen["logits"] = forward(self, images)
        handle.remove()
        return seen["logits"]

    def after_step(self: ClassificationTask, *_: object) -> None:
        effects.append(OPTIONS[option](self, seen))

    monkeypatch.setattr(ClassificationTask, "forward", watched_forward)
    monkeypatch.setattr(ClassificationTask, "on_train_batch_end", after_step)
    run("fit", ["--config", str(recipe(tmp_path)), "--trainer.max_steps=3", option])
    assert effects == [True] * 3
    assert saved.resolve(tmp_path / "run").network(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_the_model_is_called_compiled() -> None:
    """What torch.compile makes of the models is looked at in tests/models."""
    images = torch.randn(2, 3, 32, 32)
    compiled = task(compile_model=True).eval()
    plain = task().eval()
    plain.load_state_dict(compiled.state_dict())
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), plain(images), rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_it_goes_on_in_the_middle_of_an_epoch_of_images(tmp_path: Path) -> None:
    for name, i in itertools.product("ab", range(5)):  # one of each class is for validation
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 40), 50).convert("RGB").save(tmp_path / "images" / name / f"{i}.png")
    arguments = {"root": str(tmp_path / "images"), "image_size": 32, "batch_size": 2, "num_workers": 0}
    changes = {
        "data": {"class_path": "iformer.classification.data.ImageData", "init_args": arguments},
        "model__init_args__num_classes": 2,
        "model__init_args__optimization": {"base_batch": None, "warmup_epochs": 0},
        "trainer__max_epochs": 2,
        "checkpoint__keep": 100,
    }
    run("fit", ["--config", str(recipe(tmp_path, **changes))])
    kept = tmp_path / "resumed" / "run" / checkpoints.FOLDER
    kept.mkdir(parents=True)
    name = "step-000000006.ckpt"  # of 8, 4 in an epoch
    (kept / name).symlink_to(tmp_path / "run" / checkpoints.FOLDER / name)
    run("fit", ["--config", str(recipe(tmp_path / "resumed", **changes)), "--resume"])
    whole, resumed = (saved.resolve(path / "run").network.state_dict() for path in (tmp_path, tmp_path / "resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_trained_weights_are_tested_by_checkpoint_or_folder(tmp_path: Path, iformer: Command) -> None:
    file = str(recipe(tmp_path, trainer__max_epochs=2))
    run("fit", ["--config", file])
    history = (tmp_path / "run" / "metrics.csv").read_text()
    metrics = []
    for extra in (["--resume"], [f"--model.init_args.pretrained={tmp_path / 'run'}"]):
        status, out, _ = iformer("test", "--config", file, "--json", *extra)
        assert status == 0
        result = json.loads(out)
        assert result["metrics"].pop("test_images/s") > 0
        assert [(row["class"], row["images"]) for row in result["per_class"]] == [(f"class {i}", 8) for i in range(4)]
        mean = sum(row["accuracy"] for row in result["per_class"]) / 4
        assert mean == pytest.approx(result["metrics"]["test_accuracy"], abs=1e-4)
        assert result["recipe"] == "tiny"
        assert result["seed"] == 0
        metrics.append(result["metrics"])
    assert metrics[0].keys() == {"test_loss", "test_accuracy", "test_top5"}
    assert metrics[0] == metrics[1]
    assert (tmp_path / "run" / "metrics.csv").read_text() == history  # the training's, not the tests'
    (tmp_path / "run" / "per_class.csv").unlink()
    status, told, _ = iformer("validate", "--config", file, "--resume", "--trainer.enable_progress_bar=true")
    assert status == 0
    assert all(word in told for word in ("val_images/s", "class 3", "images", "accuracy"))
    assert len((tmp_path / "run" / "per_class.csv").read_text().splitlines()) == 5


def test_results_are_printed_once_and_long_tables_not(monkeypatch: pytest.MonkeyPatch, iformer: Command) -> None:
    rows = [{"class": f"class {i}", "images": 1, "accuracy": None} for i in range(201)]
    monkeypatch.setattr(launcher, "run", lambda verb, arguments: {"metrics": {"test_loss": 0.5}, "per_class": rows})
    status, out, _ = iformer("test")
    assert status == 0
    assert ["test_loss", "0.5000"] in [line.split() for line in out.splitlines()]
    assert "201 classes: see per_class.csv" in out
    assert "class 7" not in out
    status, out, _ = iformer("test", "--json")
    assert status == 0
    assert json.loads(out)["per_class"] == rows
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert iformer("test", "--json")[:2] == (0, "")


def test_nothing_is_fetched_for_a_run_that_has_its_own_weights(tmp_path: Path) -> None:
    file = str(recipe(tmp_path))
    run("fit", ["--config", file, "--trainer.max_epochs=2"])
    absent = f"--model.init_args.pretrained={tmp_path / 'absent'}"
    with pytest.raises((ValueError, OSError), match="absent"):
        run("test", ["--config", file, absent])
    assert run("test", ["--config", file, absent, "--resume"])["metrics"]["test_loss"] > 0


def test_mistakes_with_checkpoints_and_devices_take_one_line(tmp_path: Path, iformer: Command) -> None:
    file = str(recipe(tmp_path))
    run("fit", ["--config", file, "--trainer.max_epochs=2"])
    weights = str(max(tmp_path.glob("run/checkpoints/*.ckpt")))
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    five = ["--model.init_args.num_classes=5", "--data.init_args.classes=5"]
    mistakes = {
        "size mismatch": [f"--ckpt_path={weights}", *five],
        "not a checkpoint": [f"--ckpt_path={tmp_path / 'text.ckpt'}"],
        **({} if torch.cuda.is_available() else {"CUDA": ["--trainer.accelerator=cuda"]}),
    }
    for message, arguments in mistakes.items():
        status, _, err = iformer("test", "--config", file, *arguments)
        assert status == 2
        last = err.splitlines()[-1]
        assert last.startswith("iformer: error: ")
        assert message in last


def test_odd_batches_cannot_be_mixed(tmp_path: Path, iformer: Command) -> None:
    status, _, err = iformer("fit", f"--config={recipe(tmp_path)}", "--data.init_args.batch_size=3")
    assert status == 2
    assert "data.init_args.batch_size is 3, but Mixup" in err.splitlines()[-1]


def test_confusion_is_drawn(tmp_path: Path) -> None:
    matrix = torch.tensor([[8, 2, 0], [0, 0, 0], [1, 1, 2]])
    save_figure(confusion_matrix(matrix.numpy(), ["a cat", "absent", "a dog"]), tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) > 400
