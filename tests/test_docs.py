"""Every program and command in README.md and the pages of docs/ runs on what it speaks of, in a folder that has that.

The tutorials and explanations are executed when the site is built.
"""

import itertools
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from markdown_it import MarkdownIt
from PIL import Image
from typer.main import get_command

from iformer.detection.model import build as build_detector
from iformer.models import saved
from iformer.segmentation.model import build
from iformer.training import recipes
from iformer_command import cli
from tests.detection.conftest import CONFIG as DETECTOR
from tests.networks import NARROW, SCENES, SEGMENTERS
from tests.training.tiny import MODEL

ROOT = Path(__file__).parents[1]
OWN_TEST = "docs/ecosystem.md"  # its programs need packages that may not be installed: tests/test_ecosystem.py
PAGES = ["README.md", *sorted({f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} - {OWN_TEST})]

FETCHES = "downloads released weights"
HUB = "needs the Hugging Face Hub, and has tests with a stand-in for it"
ELSEWHERE = "takes long, and has tests of its own"
ENDLESS = "serves a page until it is ended, and has tests of its own"
NOT_RUN = {
    "pip install .": "installs",
    'pip install ".[all]"': "installs",
    'pip install ".[deploy]"': "installs",
    'pip install ".[search]"': "installs",
    'pip install ".[explore]"': "installs",
    "benchmark_app -m iformer_small.xml -d CPU -hint none -nstreams 1 -nthreads 2 -infer_precision f32 -pc": (
        "comes with OpenVINO"
    ),
    "pip install supervision": "installs",
    "python -m benchmarks.detection_memory": ELSEWHERE,
    "python -m benchmarks.training_step": ELSEWHERE,
    "MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 iformer fit ...": "an environment, not a whole command",
    "iformer test ... --model.init_args.confusion true": "not a whole command",
    "--trainer.logger WandbLogger": "its package is not installed for tests",
    "--trainer.logger MLFlowLogger --trainer.logger.tracking_uri URI": "its package is not installed for tests",
}
NOT_INSTALLED = "import supervision"  # in a program: a package that is not installed for tests
ONLY_PARSED = {
    "iformer fit FOLDER": FETCHES,
    "iformer fit photos": FETCHES,
    "iformer fit yolo": ELSEWHERE,
    "iformer fit camvid --data.init_args.ignore_labels '[11]'": ELSEWHERE,
    "iformer predict photo.jpg": FETCHES,
    "iformer predict photographs/ --model detector.xml --output pictures": "needs the file of a trained detector",
    "iformer publish FOLDER REPO": HUB,
    "iformer publish runs/cifar10 someone/birds --license apache-2.0": HUB,
    "iformer predict IMAGE... --model hf-hub:someone/birds": HUB,
    "iformer tables": ELSEWHERE,
    "iformer tables 3": ELSEWHERE,
    "iformer tables --markdown": ELSEWHERE,
    "iformer list": ELSEWHERE,
    "iformer explore --model runs/demo": ENDLESS,
    "iformer explore --model runs/cifar10 --model iformer_small --model runs/camvid": ENDLESS,
    "iformer fit --config distill --data.init_args.root photographs --model.init_args.num_classes 2 "
    "--model.init_args.distillation.teacher FOLDER": FETCHES,
    "iformer compare --config cifar10 --models iformer_nano,resnet18 --seeds 3 --jobs 2 --output runs/choice "
    "--data.init_args.root photos --data.init_args.val_split val --model.init_args.num_classes 4 "
    "--data.init_args.batch_size 16 --trainer.max_epochs 10": ELSEWHERE,
    "iformer compare --config cifar10 --variants variants.yaml": ELSEWHERE,
    "iformer search --checkpoint runs/search/cifar10 --data data/cifar10 --budget 'macs<=15M'": ELSEWHERE,
    "iformer search --checkpoint runs/search/cifar10 --budget 'latency<=2ms' --budget 'macs<=15M' --engine openvino "
    "--candidates 200 --output runs/ramp_search": ELSEWHERE,
    "iformer analyze photographs/ --model iformer_small --compare swin_tiny_patch4_window7_224": FETCHES,
    "iformer analyze YOUR_IMAGES --model iformer_small --untrained": FETCHES,
    "iformer analyze --labelled data/cifar10/test --model runs/comparison/all/seed_0 "
    "--compare runs/comparison/attention/seed_0 --limit 1000": "takes minutes",
    "iformer benchmark --model iformer_small --model convnext_tiny --engines eager,fused,openvino "
    "--precisions fp32,bf16,int8": "takes minutes",
    "iformer benchmark --batch 1 --batch 8 --engines compile,onnxruntime --figure latency.png --json": "takes minutes",
    "iformer benchmark --model runs/cifar10 --engines eager --batch 32 --images data/cifar10/test": "takes minutes",
    "iformer benchmark --task segmentation --model iformer_small "
    "--model torchvision.models.segmentation:deeplabv3_resnet50": "takes minutes",
    "iformer benchmark --task detection --model iformer_small "
    "--model torchvision.models.detection:maskrcnn_resnet50_fpn --engines eager,fused --size 800 1066": "takes minutes",
}
# Where a document names a large model, one that is fetched, or much work, and what takes its place. Other placeholders
# (IMAGE..., RECIPE) stand as they are: they are the names of files in the folder where the commands run.
REPLACED = {
    "convert RELEASED.pth": "convert iformer_small.pth",  # whose name says which model it is
    "--checkpoint iformer_small.pth --target": "--checkpoint iformer_small.pth --limit 1 --target",
    "--labelled data/cifar10/test": "--labelled data/cifar10/test --frequencies 4",
    "export iformer_small --format openvino": "export test_resnet --format openvino --weights random",
    "export iformer_small --format torch-export": "export test_resnet --format torch-export",
    "--size 360 480": "--size 64 96",
    "fit photos --weights random": "fit photos --weights random --epochs 1",
    "pretrained=True)": 'pretrained=True, pretrained_cfg_overlay=dict(file="iformer_small.pth"))',
    "pretrained=True, features_only": 'pretrained=True, pretrained_cfg_overlay=dict(file="iformer_small.pth"), '
    "features_only",
    "pretrained_backbone=True": 'pretrained_backbone="iformer_small.pth"',
}


def normal(command: str) -> str:
    return shlex.join(shlex.split(command, comments=True))


NORMAL_NOT_RUN = {normal(text) for text in NOT_RUN}
NORMAL_ONLY_PARSED = {normal(text) for text in ONLY_PARSED}
# Commands for a model of one's own, which may be a greyscale one.
TRAINED = re.compile(r"runs/|\bFOLDER\b|\bMODEL\b")
# Settings that need several devices, or weights that are fetched.
ONE_MACHINE = ("--trainer.devices", "--model.init_args.pretrained")


def code(page: str) -> list[tuple[str, str]]:
    """The programs (``python``) and commands (``sh``) of a page, in their order."""
    found = []
    for token in MarkdownIt().enable("table").parse((ROOT / page).read_text()):
        assert token.type != "code_block", f"{page}: {token.content}: an indented block does not say what it is"
        if token.type == "fence" and token.info == "python":
            found.append(("python", token.content))
        elif token.type == "fence" and token.info == "sh":
            found += [("sh", line) for line in token.content.splitlines()]
        found += [("sh", each.content) for each in token.children or () if each.type == "code_inline"]
    return [(kind, normal(text) if kind == "sh" else text) for kind, text in found if kind == "python" or runs(text)]


def runs(text: str) -> bool:
    """Whether this is more than the name of something."""
    settings = r"--(model|data|trainer|checkpoint|freeze|early_stopping)\S* "
    begins = r"iformer (list|tables)$|iformer \w+ \S|(make|pip|srun|torchrun) |python -m|benchmark_app|MALLOC"
    return bool(re.match(f"{begins}|{settings}", text))


def settings(name: str, arguments: dict[str, Any], data: dict[str, Any]) -> str:
    """A packaged recipe for tiny data and an epoch of a tiny model."""
    recipe = recipes.read(recipes.find(name))
    recipe["model"]["init_args"].update(arguments)
    recipe["data"]["init_args"].update({"batch_size": 2, "num_workers": 0, **data})
    recipe["trainer"] = {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
    return yaml.safe_dump(recipe)


@pytest.fixture
def place(tmp_path: Path, scenes: Path, released_file: Path) -> Callable[[str, int], Path]:
    """Makes the folder where a page's commands run: all that it speaks of, and a classifier of so many channels."""

    def make(page: str, channels: int) -> Path:
        torch.manual_seed(0)
        here = tmp_path / "place"
        photo = Image.effect_noise((70, 60), 80).convert("RGB")
        for split, name in itertools.product(("train", "val", "test"), ("cat", "dog")):
            images = here / "data/cifar10" / split / name
            images.mkdir(parents=True)
            for number in range(2):
                photo.rotate(number).save(images / f"{number}.png")
        for name in ("photo.jpg", "street.jpg"):
            photo.save(here / name)
        shutil.copytree(scenes / "images/val", here / "data/camvid/images/val")
        saved.save(
            timm.create_model("iformer_nano", num_classes=2, in_chans=channels, img_size=32, **MODEL),
            here / "runs/cifar10",
            ["cat", "dog"],
            **{"input_size": (1, 32, 32), "mean": (0.3,), "std": (0.3,)} if channels == 1 else {},
        )
        network = SEGMENTERS["semantic_fpn"]
        config = {**SCENES, "network": network, "crop": [32, 32]}
        saved.save_assembled(build(**network), here / "runs/camvid", "segmentation", config)
        detector = here / "runs/coco/mask_rcnn_iformer_small_1x"
        saved.save_assembled(build_detector(**DETECTOR["network"]), detector, "detection", DETECTOR)
        links = {
            "photo.jpg": ["IMAGE...", "IMAGE_OR_FOLDER..."],
            "data/cifar10/test": [
                "IMAGES...",
                "photographs",
                "photos",
                "TRAIN_FOLDER",
                "TEST_FOLDER",
            ],
            "runs/cifar10": ["A", "B", "MODEL", "FOLDER"],
            str(released_file): ["RELEASED.pth", "iformer_small.pth"],
        }
        for target, name in ((target, name) for target, names in links.items() for name in names):
            (here / name).symlink_to(target)
        (here / "RECIPE").write_text(segmenters_recipe(scenes) if "segmentation" in page else classifiers_recipe(here))
        return here

    return make


def classifiers_recipe(here: Path) -> str:
    task = {"num_classes": 2, "model_args": {**MODEL, "img_size": 32}}
    return settings("cifar10", task, {"root": str(here / "data/cifar10")})


def segmenters_recipe(scenes: Path) -> str:
    task = {"num_classes": 3, "model_args": {**NARROW, "neck_channels": 8, "head_channels": 8}}
    folders = {f"{split}_labels": f"labels/{split}" for split in ("train", "val")}
    data = {"root": str(scenes), "class_names": list("abc"), "ignore_labels": [9], "palette": None, "crop": [32, 32]}
    data["eval_batch_size"] = 1  # images differ in size
    return settings("camvid", task, {**folders, **data})


CASES = [(page, 3) for page in PAGES] + [("docs/deployment.md", 1)]


@pytest.mark.parametrize(("page", "channels"), CASES)
def test_page(
    page: str,
    channels: int,
    place: Callable[[str, int], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not code(page):
        return
    monkeypatch.chdir(place(page, channels))
    names = names_of(page)
    wrong = []
    if page == "docs/segmentation.md":  # which speaks of a run that is there
        assert execute("iformer fit --config RECIPE", page, monkeypatch) == 0
    for kind, text in code(page):
        if text in NORMAL_NOT_RUN or (channels == 1 and kind == "sh" and not TRAINED.search(text)):
            continue
        if kind == "python":
            if NOT_INSTALLED not in text:
                exec(compile(replaced(text), page, "exec"), names)
        elif status := execute(text, page, monkeypatch):
            wrong.append(f"{text}: {status}, {capsys.readouterr().err[-400:]}")
        capsys.readouterr()
    assert not wrong, "\n".join(wrong)


def test_exceptions_are_in_the_documents() -> None:
    written = {text for page in PAGES for _, text in code(page)}
    assert {normal(text) for text in (*NOT_RUN, *ONLY_PARSED)} <= written


def test_the_house_has_every_module() -> None:
    plan = re.search(r"## The house\n\n(.+?)\n\n", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert plan
    parts = re.split(r"^ {4}(?:\w+ \d|beside)? +(?=\w+(?:/|\.py) )", plan[1], flags=re.MULTILINE)
    rooms = {part.split("/")[0]: set(re.findall(r"\w+", part)) for part in parts if re.match(r"\w+/", part)}
    folders = [folder for folder in (ROOT / "iformer").iterdir() if list(folder.glob("*.py"))]
    for folder in (*folders, ROOT / "iformer_command"):
        modules = {file.stem for file in folder.glob("*.py")} - {"__init__"}
        assert modules <= rooms[folder.name], folder.name


def replaced(text: str) -> str:
    for name, other in REPLACED.items():
        text = text.replace(name, other)
    return text


def execute(text: str, page: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of a command of a page."""
    words = shlex.split(replaced(text))
    if words[0] == "make":
        return subprocess.run([*words, "--dry-run"], cwd=ROOT, check=False, capture_output=True).returncode
    if words[0].startswith("--"):  # a setting
        own = {"docs/segmentation.md": "segmentation_folder", "docs/detection.md": "coco/tiny"}
        recipe = {**own, "docs/search.md": "search/cifar10"}.get(page, "finetune")
        words = ["iformer", "fit", "--config", recipe, *words]
    if words[0] in ("srun", "torchrun"):  # what they start
        verb = next(number for number, word in enumerate(words) if word in ("fit", "predict"))
        words = ["iformer", *words[verb:]]
    assert words[0] == "iformer", text
    if text in NORMAL_ONLY_PARSED:
        get_command(cli.app).commands[words[1]].make_context(words[1], words[2:])  # type: ignore[attr-defined]
        return 0
    whole = words[words.index("--config") + 1] == "RECIPE" if "--config" in words else True
    if not whole or any(word in ONE_MACHINE for word in words):  # weights, data and devices that are not here
        words.append("--print_config")
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def names_of(page: str) -> dict[str, Any]:
    """What the programs of a page take as given."""
    given: dict[str, Any] = {}
    if page == "docs/deployment.md":
        given["model"] = timm.create_model("iformer_nano").eval()
        given["backbone"] = timm.create_model("iformer_nano", features_only=True).eval()
    elif page == "docs/analysis.md":
        network = {**SEGMENTERS["semantic_fpn"], "num_classes": 16}
        given |= {"torch": torch, "segmenter": build(**network).eval(), "images": torch.rand(2, 3, 64, 96)}
        given["detector"] = build_detector(**DETECTOR["network"]).eval()
    return given
