"""Which pictures the explorer takes, and which come along."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iformer.explorer import examples, pictures
from iformer.explorer.classify import Classify
from iformer.explorer.workbench import Workbench
from tests.explorer.conftest import Folders


@pytest.mark.parametrize(
    ("which", "told"),
    [
        (None, "There is no picture"),
        ("broken", "broken.png: "),
        ("huge", "9000 × 9000 pixels"),
        ("gone", "no longer here"),
    ],
)
def test_wrong_pictures_are_told(which: str | None, told: str, bench: Workbench, folders: Folders) -> None:
    file = {None: None, "gone": "/nowhere/gone.png"}.get(which, getattr(folders, which or "photo", None))
    with pytest.raises(ValueError, match=told) as error:
        Classify(bench).view(file, [folders.colour], None, 0.5)
    assert "\n" not in str(error.value)


def test_only_what_was_given_to_the_page_is_read(folders: Folders, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from iformer.explorer.frame import given_file

    assert given_file({"path": str(tmp_path / "upload/photo.png")}, tmp_path) == str(tmp_path / "upload/photo.png")
    for other in (folders.photo, f"{tmp_path}/../photo.png", f"{tmp_path}-other/photo.png"):
        assert given_file({"path": other}, tmp_path) is None
    assert given_file(None, tmp_path) is None


def test_large_files_are_refused_and_large_pictures_reduced(
    bench: Workbench, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.effect_noise((3000, 1500), 50).save(tmp_path / "wide.jpg")
    picture = pictures.read(str(tmp_path / "wide.jpg"))
    assert picture.image.size == (1280, 640)
    assert "3000 × 1500" in Classify(bench).view(str(tmp_path / "wide.jpg"), [folders.colour], None, 0.5).html
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(pictures.LARGEST_FILE + 1)
    with pytest.raises(ValueError, match="at most 20 MiB"):
        pictures.read(str(tmp_path / "big.png"))


def test_pictures_come_along(tmp_path: Path) -> None:
    files = examples.write(tmp_path, "street")
    assert len(files) >= 4
    assert files[0].stem == "street"
    for file in files:
        assert np.asarray(Image.open(file)).std() > 2
        assert file.stat().st_size < 300_000
