"""Folders of images and label maps, and what is wrong with them."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iformer.common.plotting import default_palette
from iformer.segmentation.data import SegmentationData
from iformer.segmentation.transforms import IGNORE
from tests.segmentation.conftest import FOLDERS, NAMES


def data(root: Path, **arguments: Any) -> SegmentationData:
    settings = {"class_names": NAMES, "ignore_labels": [9], "crop": (32, 40), "batch_size": 2, "num_workers": 0}
    module = SegmentationData(str(root), **{**settings, **FOLDERS, **arguments})
    module.setup()
    return module


def labels_in(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


def test_training_gives_crops_and_evaluation_whole_images(scenes: Path) -> None:
    module = data(scenes)
    for images, labels in module.train_dataloader():
        assert (images.shape, labels.shape) == ((2, 3, 32, 40), (2, 32, 40))
        assert set(labels.unique().tolist()) <= {0, 1, 2, IGNORE}
    sizes = []
    for i, (images, labels) in enumerate(module.val_dataloader()):
        stored = labels_in(scenes / f"labels/val/{i}.png")
        assert images.shape[-2:] == labels.shape[-2:] == stored.shape
        assert torch.equal(labels[0], torch.from_numpy(np.where(stored == 9, IGNORE, stored)))
        sizes.append(stored.shape)
    assert len(set(sizes)) == 3


def test_labels_of_ade20k_begin_with_one(scenes: Path) -> None:
    for split in ("training", "validation"):
        for kind, source in (("images", "images"), ("annotations", "labels")):
            (scenes / kind).mkdir(exist_ok=True)
            (scenes / source / split.removesuffix("ing").removesuffix("idation")).rename(scenes / kind / split)
    for file in (scenes / "annotations").rglob("*.png"):
        Image.fromarray(((labels_in(file) + 1) % 10).astype(np.uint8)).save(file)  # 9 becomes 0, "other"
    module = SegmentationData(str(scenes), NAMES, first_label=1, ignore_labels=[0], num_workers=0)
    module.setup()
    _, labels = next(iter(module.val_dataloader()))
    stored = labels_in(scenes / "annotations/validation/0.png").astype(int)
    assert (labels[0].numpy() == np.where(stored == 0, IGNORE, stored - 1)).all()


def test_names_of_images_and_label_maps_may_end_differently(scenes: Path) -> None:
    for kind, end in (("images", "_photo"), ("labels", "_classes")):
        for file in list((scenes / kind).rglob("*.png")):
            (file.parent / "city").mkdir(exist_ok=True)
            file.rename(file.parent / "city" / f"{file.stem}{end}.png")
    module = data(scenes, image_suffix="_photo.png", label_suffix="_classes.png")
    assert len(module.val_dataloader()) == 3
    with pytest.raises(ValueError, match=r"images.train: no image whose name ends in _photos\.png"):
        data(scenes, image_suffix="_photos.png")


@pytest.mark.parametrize("mode", ["P", "I;16"])
def test_every_kind_of_label_map(scenes: Path, mode: str) -> None:
    expected = next(iter(data(scenes).val_dataloader()))[1]
    file = scenes / "labels/val/0.png"
    labels = labels_in(file)
    if mode == "P":
        image = Image.fromarray(labels)
        image.putpalette([7, 7, 7] * 256)  # the colours must not matter
    else:
        image = Image.fromarray(labels.astype(np.uint16))
    image.save(file)
    assert Image.open(file).mode == mode
    assert torch.equal(next(iter(data(scenes).val_dataloader()))[1], expected)


def test_photos_held_sideways_are_not_turned(scenes: Path) -> None:
    expected = next(iter(data(scenes).val_dataloader()))[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(scenes / "images/val/0.png") as image:
        image.save(scenes / "images/val/0.png", exif=exif)
    assert torch.equal(next(iter(data(scenes).val_dataloader()))[0], expected)


def png(labels: np.ndarray, bits: int) -> bytes:
    """A greyscale PNG of so many bits per pixel, which Pillow reads but does not write."""
    wide = np.unpackbits(labels[..., None], axis=2)[..., 8 - bits :].reshape(len(labels), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(wide, axis=1))
    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


@pytest.mark.parametrize("kind", [1, 2, 4, "pgm"])
def test_label_maps_of_fewer_than_eight_bits(scenes: Path, kind: int | str) -> None:
    file = scenes / "labels/val/0.png"
    stored = np.minimum(labels_in(file), 1 if kind == 1 else 3)  # 9 becomes 3
    if kind == "pgm":
        file.write_bytes(b"P5 %d %d 15\n" % stored.shape[::-1] + stored.tobytes())
    else:
        file.write_bytes(png(stored, int(kind)))
    _, labels = next(iter(data(scenes, ignore_labels=[3, 9]).val_dataloader()))
    assert np.array_equal(labels[0].numpy(), np.where(stored == 3, IGNORE, stored))


def unknown_label(file: Path) -> None:
    labels = labels_in(file).copy()
    labels[5, 5] = 3
    Image.fromarray(labels).save(file)


def another_size(file: Path) -> None:
    Image.fromarray(labels_in(file)[1:]).save(file)


def cut_off(file: Path) -> None:
    random = np.random.default_rng(0).integers(0, 3, (200, 200), np.uint8)
    Image.fromarray(random).save(file)
    file.write_bytes(file.read_bytes()[:500])


def in_colours(file: Path) -> None:
    Image.open(file).convert("RGB").save(file)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (unknown_label, "label 3, expected 0 to 2, the classes, or 9, which is ignored"),
        (another_size, r"70 x 59 pixels, but its image .*images.val.0\.png has 70 x 60"),
        (cut_off, "unreadable image"),
        (in_colours, "a label map of mode RGB, expected greyscale or palette"),
        (lambda file: file.write_text("no image"), "not an image that Pillow can read"),
    ],
)
def test_a_wrong_label_map_is_named_in_one_line(scenes: Path, damage: Callable[[Path], Any], told: str) -> None:
    file = scenes / "labels/val/0.png"
    damage(file)
    with pytest.raises(ValueError, match=f"{file}: {told}") as error:
        next(iter(data(scenes).val_dataloader()))
    assert "\n" not in str(error.value)


def test_a_worker_names_the_file_in_one_line_too(scenes: Path) -> None:
    unknown_label(scenes / "labels/val/0.png")
    with pytest.raises(ValueError, match=r"^\S*labels/val/0\.png: label 3, expected 0 to 2") as error:
        next(iter(data(scenes, num_workers=1).val_dataloader()))
    assert "\n" not in str(error.value)


def test_missing_label_maps_are_named(scenes: Path) -> None:
    (scenes / "labels/train/3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels/train/3\.png: no such label map, for .*images/train/3\.png$"):
        data(scenes)
    (scenes / "labels/train/1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels/train/1\.png: no such label map, .* and 1 more$"):
        data(scenes)
    with pytest.raises(FileNotFoundError, match="images/trn: no such file or folder"):
        data(scenes, train_images="images/trn")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"class_names": ["a"]}, "class_names has 1 names"),
        ({"class_names": ["a", "b", "a"]}, "class_names has 3 names, 2 of them different"),
        ({"palette": [(1, 2, 3)]}, "palette has 1 colours"),
        ({"palette": [(1, 2, 3)] * 2 + [(1, 2, 300)]}, "palette is "),
        ({"max_share": 75}, "max_share is 75, expected 1 or less"),
        ({"ratios": (0, 2)}, r"ratios is \(0, 2\)"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"ignore_labels": [-1]}, r"ignore_labels is \[-1\]"),
        ({"first_label": 65535}, "first_label is 65535"),
        ({"ignore_labels": [2]}, "ignore_labels is 2, which stands for the class blue; expected none of 0 to 2"),
        ({"ignore_labels": [1], "first_label": 1}, "ignore_labels is 1, which stands for the class red"),
    ],
)
def test_wrong_arguments_are_named(scenes: Path, arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        data(scenes, **arguments)


def test_images_of_several_sizes_do_not_make_a_batch(scenes: Path) -> None:
    with pytest.raises(ValueError, match="eval_batch_size is 2, but the images differ in size; expected 1"):
        next(iter(data(scenes, eval_batch_size=2).val_dataloader()))


def test_classes_of_ade20k() -> None:
    module = SegmentationData("nowhere", "ade20k/classes.txt")
    assert len(module.class_names) == 150
    assert (module.class_names[0], module.class_names[149]) == ("wall", "flag")
    assert len(set(default_palette(150))) == 150


def test_order_and_crops_depend_on_the_seed_not_on_the_workers(scenes: Path) -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        return [images for images, _ in data(scenes, num_workers=workers).train_dataloader()]

    for one, other in zip(batches(0), batches(2), strict=True):
        assert torch.equal(one, other)


def test_a_class_without_a_pixel_is_told_with_what_the_files_hold(
    scenes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in (scenes / "labels").rglob("*.png"):
        Image.fromarray(np.where(labels_in(file) == 1, 255, 0).astype(np.uint8)).save(file)
    data(scenes, class_names=["background", "object"], ignore_labels=[255])
    (message,) = caplog.messages
    assert message == (
        f"{scenes}/labels/train: no pixel of object in 8 label maps, which hold the values 0, 255 (ignored); "
        "expected 0 to 1, the classes, or 255, which is ignored"
    )


def test_classes_that_are_all_there_are_not_worth_a_word(scenes: Path, caplog: pytest.LogCaptureFixture) -> None:
    data(scenes)
    assert not caplog.messages


def test_rare_classes_of_a_large_set_are_not_worth_a_word(
    scenes: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iformer.segmentation.data.SAMPLE", 4)
    data(scenes, class_names=[*NAMES, "unicorn"])
    assert not caplog.messages
    monkeypatch.setattr("iformer.segmentation.data.SAMPLE", 8)
    data(scenes, class_names=[*NAMES, "unicorn"])
    assert "no pixel of unicorn in 8 label maps" in caplog.text


def test_hidden_files_are_no_images_and_linked_folders_are_followed(scenes: Path, tmp_path: Path) -> None:
    (scenes / "images/train/._0.png").write_bytes(b"not an image")
    (scenes / "images/train/.ipynb_checkpoints").mkdir()
    (scenes / "images/train/.ipynb_checkpoints/0.png").write_bytes(b"not an image")
    for kind in ("images", "labels"):
        (scenes / kind / "val").rename(tmp_path / f"{kind}_elsewhere")
        (scenes / kind / "val").mkdir()
        (scenes / kind / "val/town").symlink_to(tmp_path / f"{kind}_elsewhere", target_is_directory=True)
    module = data(scenes)
    assert len(module.train_dataloader()) == 4
    assert len(list(module.val_dataloader())) == 3


def test_test_images_are_others_than_the_validations_where_they_have_a_folder_of_their_own(scenes: Path) -> None:
    folders = [None, FOLDERS["val_images"], "images/train"]
    labels = [None, FOLDERS["val_labels"], "labels/train"]
    modules = [data(scenes, test_images=a, test_labels=b) for a, b in zip(folders, labels, strict=True)]
    assert [module.has_test for module in modules] == [False, False, True]
