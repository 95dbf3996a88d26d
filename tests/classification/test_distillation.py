"""A student and its teacher."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor

from iformer.classification import distillation
from iformer.classification.distillation import Distillation, Teacher
from iformer.classification.task import ClassificationTask
from iformer.models import saved
from iformer.models.backbone import create
from iformer.training import checkpoints
from iformer.training.launcher import run
from tests.conftest import Command
from tests.processes import start_ranks
from tests.training.tiny import MODEL, log_of, recipe

NAMES = [f"class {i}" for i in range(4)]
WIDER: dict[str, Any] = {**MODEL, "dims": [12, 12]}
EVERY_STEP = {"trainer__log_every_n_steps": 1}


def save_teacher(folder: Path, names: list[str] = NAMES, seed: int = 1, size: int = 32, in_chans: int = 3) -> str:
    """A teacher with other widths than the student's."""
    torch.manual_seed(seed)
    model = create("iformer_nano", num_classes=len(names), in_chans=in_chans, img_size=size, **WIDER)
    model.head.fc.weight.data.normal_(std=3.0)
    saved.save(model, folder, names, input_size=(in_chans, size, size), mean=[0.4] * in_chans, std=[0.2] * in_chans)
    return str(folder)


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return save_teacher(tmp_path / "teacher")


def taught(teacher: str, **settings: Any) -> dict[str, Any]:
    return {"model__init_args__distillation": {"teacher": teacher, **settings}}


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(saved.resolve(folder / "run").network.state_dict())


@pytest.mark.parametrize(
    ("kind", "callback"),
    [
        ("soft", None),
        ("hard", None),
        ("features", "lightning.pytorch.callbacks.EMAWeightAveraging"),
    ],
)
def test_it_goes_on_with_the_same_weights(kind: str, callback: str | None, teacher: str, tmp_path: Path) -> None:
    changes = {**EVERY_STEP, **taught(teacher, kind=kind, temperature=2.0), "trainer__max_epochs": 2}
    changes["trainer__callbacks"] = [{"class_path": callback}] if callback else []
    (tmp_path / "whole").mkdir()
    run("fit", ["--config", str(recipe(tmp_path / "whole", checkpoint__keep=100, **changes))])
    kept = tmp_path / "run" / checkpoints.FOLDER
    kept.mkdir(parents=True)
    (kept / "step-000000012.ckpt").symlink_to(tmp_path / "whole/run" / checkpoints.FOLDER / "step-000000012.ckpt")
    shutil.copy(tmp_path / "whole/run/metrics.csv", tmp_path / "run")
    run("fit", ["--config", str(recipe(tmp_path, **changes)), "--resume"])
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert log_of(tmp_path / "run") == log_of(tmp_path / "whole/run")


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_student_of_nothing_but_a_teacher_comes_to_agree_with_it(kind: Any, teacher: str) -> None:
    task = ClassificationTask("iformer_nano", 4, model_args=MODEL, distillation=Distillation(teacher, kind, 1.0))
    assert task.teacher is not None
    task.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    images = torch.randn(16, 3, 32, 32) + 4 * torch.randn(16, 3, 1, 1)  # of which the teacher thinks differently
    labels = torch.zeros(16, dtype=torch.long)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    for step in range(40):
        optimizer.zero_grad()
        task.training_step((images, labels), step).backward()
        optimizer.step()
    answers = task.teacher(images).argmax(1)
    assert len(answers.unique()) > 1
    assert (task(images).argmax(1) == answers).float().mean() > 0.9


@pytest.mark.parametrize("kind", ["soft", "hard", "features"])
def test_the_loss_of_mixed_images(kind: Any, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what the definition says, where the data is normalised in another way than the teacher's was."""
    monkeypatch.setattr(distillation, "half_precision", lambda device: torch.no_grad())
    settings = Distillation(teacher, kind, 0.3, 2.0)
    task = ClassificationTask("iformer_nano", 4, model_args=MODEL, mixup=0.8, distillation=settings)
    task.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    mean, std = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.1)
    assert task.teacher is not None
    task.teacher.prepare(NAMES, {"mean": [0.5] * 3, "std": [0.1] * 3})
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    np.random.seed(0)
    loss = task.training_step((images.clone(), labels), 0)
    np.random.seed(0)
    mixed, targets = Mixup(0.8, label_smoothing=0.1, num_classes=4)(images.clone(), labels)

    network = saved.resolve(teacher).network
    own_mean, own_std = (torch.tensor(network.pretrained_cfg[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
    seen = (mixed * std + mean - own_mean) / own_std
    with torch.no_grad():
        answers = network(seen)
        features = network.forward_head(network.forward_features(seen), pre_logits=True)
    logits = task(mixed)
    if kind == "soft":
        p, q = (answers / 2).softmax(1), (logits / 2).softmax(1)
        expected = 4 * (p * (p / q).log()).sum(1).mean()
    elif kind == "hard":
        expected = -logits.log_softmax(1)[range(4), answers.argmax(1)].mean()
    else:
        mine = task.model.forward_head(task.model.forward_features(mixed), pre_logits=True)
        expected = (task.projection(mine) - features).square().mean()
    ordinary = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(loss, 0.7 * ordinary + 0.3 * expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_answers_in_the_students_order_and_at_its_own_size(tmp_path: Path) -> None:
    same = Teacher(Distillation(save_teacher(tmp_path / "same")), 3)
    other = Teacher(Distillation(save_teacher(tmp_path / "other", NAMES[::-1], size=48)), 3)
    large = create("iformer_nano", num_classes=4, img_size=48, **WIDER)
    large.load_state_dict(other.model.state_dict())
    same.prepare(NAMES, {})
    other.prepare(NAMES, {})
    images = torch.randn(3, 3, 32, 32)
    assert other.size == (48, 48)
    seen = F.interpolate(images, (48, 48), mode="bilinear", antialias=True)
    with torch.no_grad(), distillation.half_precision(images.device):
        expected = large.eval()(seen)
    torch.testing.assert_close(other(images), expected.float()[:, [3, 2, 1, 0]])
    assert same(images).shape == (3, 4)


def test_a_teacher_is_not_a_part_of_the_student(teacher: str, tmp_path: Path) -> None:
    task = ClassificationTask("iformer_nano", 4, model_args=MODEL, distillation=Distillation(teacher, "features"))
    assert task.teacher is not None
    task.train()
    assert not any(module.training for module in task.teacher.modules())
    torch.manual_seed(0)
    alone = ClassificationTask("iformer_nano", 4, model_args=MODEL)
    torch.manual_seed(0)
    pupil = ClassificationTask("iformer_nano", 4, model_args=MODEL, distillation=Distillation(teacher))
    assert alone.state_dict().keys() == pupil.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), pupil.parameters(), strict=True))


def test_a_student_is_tested_without_its_teacher(teacher: str, tmp_path: Path, iformer: Command) -> None:
    file = str(recipe(tmp_path, **taught(teacher, kind="features"), trainer__max_epochs=2))
    run("fit", ["--config", file])
    before = weights(tmp_path)
    shutil.rmtree(teacher)
    assert iformer("test", "--config", file, "--resume", "--json")[0] == 0
    assert all(not name.startswith("projection") for name in before)
    status, _, told = iformer("fit", "--config", file, "--resume")
    assert (status, len(told.splitlines())) == (2, 1)
    assert "no such file or folder" in told


def test_another_teacher_is_told_but_another_place_is_none(teacher: str, tmp_path: Path) -> None:
    file = recipe(
        tmp_path, **taught(teacher), trainer__max_epochs=1, model__init_args__optimization={"warmup_epochs": 0}
    )
    run("fit", ["--config", str(file)])
    more = ["--config", str(file), "--resume", "--trainer.max_epochs=2"]
    another = save_teacher(tmp_path / "another", seed=2)
    with pytest.raises(ValueError, match="another, whose weights are not those of the teacher"):
        run("fit", [*more, f"--model.init_args.distillation.teacher={another}"])
    with pytest.raises(ValueError, match=r"distillation\.teacher is None"):
        run("fit", [*more, "--model.init_args.distillation=null"])
    moved = shutil.copytree(teacher, tmp_path / "moved")
    run("fit", [*more, f"--model.init_args.distillation.teacher={moved}"])


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([*NAMES, "class 4"], "has 5 classes, but the data has 4"),
        ([*NAMES[:3], "dog"], "has no class 'class 3', which the data has"),
    ],
)
def test_teachers_of_other_classes(names: list[str], told: str, tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "teacher", names)
    with pytest.raises(ValueError, match=f"distillation.teacher: .*{told}"):
        run("fit", ["--config", str(recipe(tmp_path, **taught(teacher)))])


def test_other_names_throughout_are_told(tmp_path: Path) -> None:
    found = Teacher(Distillation(save_teacher(tmp_path / "teacher", ["tench", "shark", "ray", "cock"])), 3)
    with pytest.warns(UserWarning, match="such as 'tench' for 'class 0': their order is taken to be the same"):
        found.prepare(NAMES, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.prepare(["tench", "shark", "ray", "cock"], {})


def test_mistakes_take_one_line(teacher: str, tmp_path: Path, iformer: Command) -> None:
    grey = save_teacher(tmp_path / "grey", in_chans=1)
    mistakes = {
        "no such file or folder": ["teacher=absent"],
        "an exported file, which only predict runs": ["teacher=model.onnx"],
        "takes images of 1 channels, but the student's have 3": [f"teacher={grey}"],
        "weight": [f"teacher={teacher}", "weight=1.5"],
        "temperature": [f"teacher={teacher}", "temperature=0"],
        "expected one of 'soft', 'hard', 'features'": [f"teacher={teacher}", "kind=softly"],
        "no compile_model": [f"teacher={teacher}", "kind=features"],
        "no released weights": ["teacher=iformer_nano"],
    }
    file = str(recipe(tmp_path))
    for message, arguments in mistakes.items():
        compiled = ["--model.init_args.compile_model=true"] if "compile" in message else []
        settings = [f"--model.init_args.distillation.{argument}" for argument in arguments]
        status, _, err = iformer("fit", "--config", file, *compiled, *settings)
        assert (status, len(err.splitlines())) == (2, 1), err
        assert message in err


def test_several_processes_have_a_teacher_each(teacher: str, tmp_path: Path) -> None:
    file = recipe(tmp_path, **taught(teacher, kind="features"), trainer__max_epochs=2, trainer__devices=2)
    processes = start_ranks(2, file)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0], file.with_name("stderr0").read_text()
    assert weights(tmp_path)
