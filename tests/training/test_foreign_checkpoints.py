"""Checkpoints from strangers, whole or in shards (FSDP): no code of theirs is run, by any of the files."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as sharded
from torch.distributed.checkpoint.filesystem import FileSystemReader

from iformer.training import checkpoints
from iformer.training.launcher import run
from tests.training.tiny import recipe


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.file,)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A checkpoint as Lightning writes it under FSDP."""
    return write_shards(tmp_path / "step-000000001.ckpt")


def write_shards(folder: Path, setting: Any = 0.1) -> Path:
    weights = {"w": torch.rand(2, 3), "h": torch.rand(2).half()}
    state = {"model": weights, "optimizer_0": {"param_groups": [{"lr": setting, "betas": (0.9, 0.99)}]}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        sharded.save(state, checkpoint_id=folder, no_dist=True)
    torch.save({"epoch": 0, "callbacks": {}}, folder / "meta.pt")
    return folder


def test_shards_as_they_are_written_are_read(shards: Path) -> None:
    checkpoints.require_plain(shards)


@pytest.mark.parametrize("file", [".metadata", "meta.pt", "__0_0.distcp"])
def test_no_file_of_shards_runs_code(file: str, shards: Path, tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    if file == ".metadata":
        described = FileSystemReader(shards).read_metadata()
        described.planner_data["model.w"] = Hostile(owned)
        (shards / file).write_bytes(pickle.dumps(described))
    elif file == "meta.pt":
        torch.save({"epoch": Hostile(owned)}, shards / file)
    else:
        write_shards(shards, Hostile(owned))
    with pytest.raises(ValueError, match=f"{file}: not a checkpoint, or one that holds more than weights"):
        run("validate", ["--config", str(recipe(tmp_path)), "--ckpt_path", str(shards)])
    assert not owned.exists()


def test_shards_that_lack_their_description_are_one_line(shards: Path, tmp_path: Path) -> None:
    (shards / ".metadata").unlink()
    with pytest.raises(FileNotFoundError, match=r"\.metadata: no such file, expected a checkpoint"):
        run("validate", ["--config", str(recipe(tmp_path)), "--ckpt_path", str(shards)])


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
@pytest.mark.parametrize("verb", ["fit", "test", "--resume"])
def test_no_whole_checkpoint_runs_code(verb: str, write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    owned, file = tmp_path / "owned", tmp_path / "run/checkpoints/step-000000001.ckpt"
    file.parent.mkdir(parents=True)
    write({"state_dict": {}, "hyper_parameters": Hostile(owned)}, file)
    arguments = ["fit", "--resume"] if verb == "--resume" else [verb, "--ckpt_path", str(file)]
    settings = {"trainer__strategy": {"class_path": "tests.training.tiny.CPUSharding"}} if verb == "test" else {}
    if verb == "fit":
        settings["trainer__default_root_dir"] = str(tmp_path / "other")
    with pytest.raises(ValueError, match=r"step-000000001\.ckpt: (not a checkpoint|passed over)|can be read"):
        run(arguments[0], ["--config", str(recipe(tmp_path, **settings)), *arguments[1:]])
    assert not owned.exists()
