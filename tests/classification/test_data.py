"""ImageData: every source, every kind of image, damaged images, splits, classes, augmentation."""

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from iformer.classification.data import ImageData

COLOURS = {"blue": (0, 0, 250), "green": (0, 250, 0), "red": (250, 0, 0)}
PLAIN: dict[str, Any] = {  # nothing random, nothing normalised
    "image_size": 16,
    "mean": (0, 0, 0),
    "std": (1, 1, 1),
    "crop_pct": 1.0,
    "num_workers": 0,
    "batch_size": 4,
    "hflip": 0.0,
}


def write_classes(folder: Path, count: int, colours: tuple[str, ...] = tuple(COLOURS)) -> Path:
    """``count`` images in each of the class folders."""
    for name in colours:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (24, 20), COLOURS[name]).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes, 8 images of each for training, 2 for validation."""
    write_classes(tmp_path / "set/train", 8)
    write_classes(tmp_path / "set/val", 2)
    return tmp_path / "set"


def opened(stage: str | None = None, **arguments: Any) -> ImageData:
    data = ImageData(**{**PLAIN, **arguments})
    data.setup(stage)
    return data


def batches(loader: Any) -> tuple[Tensor, Tensor]:
    """All batches of a loader in one."""
    iterator = iter(loader)
    try:
        images, labels = zip(*iterator, strict=True)
    finally:
        if loader.num_workers and sys.exc_info()[0]:
            iterator._shutdown_workers()  # torch, left alone with a traceback, waits five seconds for each
    return torch.cat(images), torch.cat(labels)


def assert_colours_fit_labels(images: Tensor, labels: Tensor) -> None:
    channel = {"red": 0, "green": 1, "blue": 2}
    expected = torch.tensor([channel[name] for name in COLOURS])[labels]
    assert torch.equal(images.mean((2, 3)).argmax(1), expected)


def write_tar(source: Path, target: Path) -> None:
    with tarfile.open(target, "w") as tar:
        for file in sorted(source.rglob("*.png")):
            tar.add(file, str(file.relative_to(source)))


def write_shards(folder: Path, split: str, shards: int, count: int) -> None:
    number = 0
    for shard in range(shards):
        with tarfile.open(folder / f"{split}-{shard:02}.tar", "w") as tar:
            for _ in range(count // shards):
                label, number = number % 3, number + 1
                buffer = io.BytesIO()
                Image.new("RGB", (20, 20), list(COLOURS.values())[label]).save(buffer, "PNG")
                for extension, content in (("png", buffer.getvalue()), ("cls", str(label).encode())):
                    info = tarfile.TarInfo(f"{number:04}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path) -> dict[str, Any]:
    """Arguments for 24 training images in four shards and 6 validation images in two."""
    write_shards(tmp_path, "train", 4, 24)
    write_shards(tmp_path, "val", 2, 6)
    (tmp_path / "classes.txt").write_text("\n".join(COLOURS))
    return {
        "root": str(tmp_path),
        "reader": "wds",
        "train_split": "train-{00..03}.tar|24",
        "val_split": "val-{00..01}.tar|6",
        "class_file": str(tmp_path / "classes.txt"),
    }


class TestSources:
    def check(self, data: ImageData) -> None:
        assert data.class_names == tuple(COLOURS)
        assert data.num_classes == 3
        images, labels = batches(data.train_dataloader())
        assert images.shape == (24, 3, 16, 16)
        assert images.dtype == torch.float32
        assert torch.equal(labels.bincount(), torch.tensor([8, 8, 8]))
        assert_colours_fit_labels(images, labels)
        images, labels = batches(data.val_dataloader())
        assert torch.equal(labels.bincount(), torch.tensor([2, 2, 2]))
        assert_colours_fit_labels(images, labels)

    def test_class_folders(self, folder: Path) -> None:
        self.check(opened(root=str(folder)))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_tar_files(self, folder: Path, tmp_path: Path, workers: int) -> None:
        (tmp_path / "tars").mkdir()
        for split in ("train", "val"):
            write_tar(folder / split, tmp_path / "tars" / f"{split}.tar")
        self.check(opened(root=str(tmp_path / "tars"), num_workers=workers))

    def test_a_tar_file_for_each_class(self, folder: Path, tmp_path: Path) -> None:
        for split in ("train", "val"):
            (tmp_path / "tars" / split).mkdir(parents=True)
            for name in COLOURS:
                write_tar(folder / split / name, tmp_path / "tars" / split / f"{name}.tar")
        self.check(opened(root=str(tmp_path / "tars")))

    def test_hugging_face_datasets(self, folder: Path, tmp_path: Path) -> None:
        self.check(opened(root=str(tmp_path / "cache"), reader=f"hfds/{folder}"))

    def test_parquet_files_of_hugging_face(self, folder: Path, tmp_path: Path) -> None:
        loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
        for split, rows in loaded.items():
            rows.to_parquet(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet")
        self.check(opened(root=str(tmp_path / "cache"), reader=f"hfds/{tmp_path / 'parquet'}"))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_shards(self, shards: dict[str, Any], workers: int) -> None:
        self.check(opened(**shards, num_workers=workers))

    def test_shards_that_are_listed(self, shards: dict[str, Any]) -> None:
        splits = {
            name: {
                "name": name,
                "num_samples": count * size,
                "filenames": [f"{name}-{i:02}.tar" for i in range(count)],
                "shard_lengths": [size] * count,
            }
            for name, count, size in (("train", 4, 6), ("validation", 2, 3))
        }
        root = Path(shards["root"])
        for i in range(2):
            (root / f"val-{i:02}.tar").rename(root / f"validation-{i:02}.tar")
        (root / "_info.json").write_text(json.dumps({"splits": splits}))
        self.check(opened(**{**shards, "train_split": None, "val_split": None}))


class TestShards:
    def test_epochs_differ_and_can_be_repeated(self, shards: dict[str, Any]) -> None:
        def orders() -> Iterator[list[int]]:
            loader = opened(**shards).train_dataloader()
            for _ in range(2):
                yield batches(loader)[1].tolist()

        first, second = orders()
        assert first != second
        assert [first, second] == list(orders())

    def test_ranks_do_the_same_number_of_batches(self, shards: dict[str, Any]) -> None:
        data = opened(**shards, batch_size=3)
        for rank in range(2):
            data.trainer = _Trainer(rank, 2)  # type: ignore[assignment]
            assert len(list(data.train_dataloader())) == 4

    def test_more_workers_than_shards(self, shards: dict[str, Any]) -> None:
        data = opened(**{**shards, "train_split": "train-00.tar|6"}, batch_size=1, num_workers=2)
        with pytest.raises(ValueError, match="1 shards are too few for 1 ranks with 2 workers"):
            batches(data.train_dataloader())

    def test_a_label_beyond_the_classes_is_named(self, shards: dict[str, Any]) -> None:
        Path(shards["class_file"]).write_text("blue\ngreen\n")
        with pytest.raises(ValueError, match=r"train-0\d\.tar: 0\d+: label 2, but there are 2 classes"):
            batches(opened(**shards).train_dataloader())

    def test_classes_must_be_named(self, shards: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="class_file"):
            opened(**{**shards, "class_file": None})


class _Trainer:
    """What ImageData asks a trainer for, before training."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.global_rank, self.world_size = rank, world_size

    def __getattr__(self, name: str) -> Any:
        if name in ("fit_loop", "epoch_progress", "current", "epoch_loop", "batch_progress"):
            return self
        return 0


class TestImageKinds:
    @pytest.mark.parametrize("source", ["folder", "tar"])
    def test_every_kind_of_file_is_read_right(self, tmp_path: Path, source: str) -> None:
        """Of each class: grey, palette, CMYK, 16 bits, transparent, sideways; the upper half is dark."""
        pixels = np.full((32, 32), 230, np.uint8)
        pixels[:16] = 20
        grey = Image.fromarray(pixels)
        for name in ("a", "b"):
            (tmp_path / "set" / name).mkdir(parents=True)
            for mode, file in (("L", "0.png"), ("P", "1.png"), ("CMYK", "2.jpg"), ("RGBA", "3.png"), ("L", "4.webp")):
                grey.convert("RGB" if file == "4.webp" else mode).save(tmp_path / "set" / name / file)
            Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "set" / name / "5.png")
            exif = Image.Exif()
            exif[0x0112] = 6
            grey.rotate(90).save(tmp_path / "set" / name / "6.jpg", exif=exif, quality=95)
        root = tmp_path / "set"
        if source == "tar":
            root = tmp_path / "set.tar"
            with tarfile.open(root, "w") as tar:
                tar.add(tmp_path / "set", ".")
        for channels in (3, 1):
            data = opened(root=str(root), in_chans=channels, mean=(0,) * channels, std=(1,) * channels, scale=(1, 1))
            data._parts["val"] = *data._parts["train"][:2], list(range(14))
            images = batches(data.val_dataloader())[0]
            assert images.shape == (14, channels, 16, 16)
            assert (images[:, :, :6] < 0.15).all()
            assert (images[:, :, 10:] > 0.85).all()


class TestDamage:
    @pytest.fixture
    def damaged(self, folder: Path) -> Path:
        (folder / "train/green/3.png").write_bytes(b"no image")
        return folder

    @pytest.mark.parametrize("workers", [0, 2])
    def test_raise_names_the_file_in_one_line(self, damaged: Path, workers: int) -> None:
        with pytest.raises(ValueError, match=r"train/green/3\.png: not an image") as caught:
            batches(opened(root=str(damaged), num_workers=workers).train_dataloader())
        assert str(caught.value).startswith(str(damaged))
        assert "\n" not in str(caught.value)

    def test_skip_takes_the_next_image_and_says_so(self, damaged: Path, caplog: pytest.LogCaptureFixture) -> None:
        data = opened(root=str(damaged), on_error="skip", max_error_share=0.05)
        images, labels = batches(data.train_dataloader())
        assert_colours_fit_labels(images, labels)
        assert torch.equal(labels.bincount(), torch.tensor([8, 8, 8]))  # 4.png in place of 3.png
        (message,) = [record.getMessage() for record in caplog.records]
        assert "skipped (1 so far)" in message
        assert "green/3.png" in message

    @pytest.mark.parametrize("workers", [0, 2])
    def test_skip_gives_up_above_the_share(self, damaged: Path, workers: int) -> None:
        (damaged / "train/red/0.png").write_bytes(b"")
        data = opened(root=str(damaged), on_error="skip", max_error_share=0.05, num_workers=workers)
        with pytest.raises(ValueError, match=r"2 of 24 images are unreadable.*0\.05.*max_error_share") as caught:
            batches(data.train_dataloader())
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("workers", [0, 1])
    def test_skip_goes_on_below_the_share_in_every_epoch(self, damaged: Path, workers: int) -> None:
        loader = opened(
            root=str(damaged), on_error="skip", max_error_share=0.05, num_workers=workers, batch_size=8
        ).train_dataloader()
        for epoch in range(4):
            loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
            assert len(batches(loader)[1]) == 24

    def test_nothing_readable_ends(self, folder: Path) -> None:
        for file in folder.rglob("*.png"):
            file.write_bytes(b"")
        with pytest.raises(ValueError, match="unreadable"):
            batches(opened(root=str(folder), on_error="skip", max_error_share=0.99).train_dataloader())

    def test_a_file_that_has_gone_is_named(self, folder: Path) -> None:
        data = opened(root=str(folder))
        (folder / "val/red/0.png").unlink()
        with pytest.raises(ValueError, match=r"red/0\.png: No such file"):
            batches(data.val_dataloader())

    def test_in_shards(self, shards: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
        file = Path(shards["root"]) / "train-02.tar"
        content = file.read_bytes()
        place = content.index(b"\x89PNG")
        file.write_bytes(content[:place] + b"nonsense" + content[place + 8 :])
        with pytest.raises(ValueError, match=r"train-02\.tar: 0013: not an image"):
            batches(opened(**shards).train_dataloader())
        images, labels = batches(opened(**shards, on_error="skip", max_error_share=0.1).train_dataloader())
        assert_colours_fit_labels(images, labels)
        assert len(labels) == 24
        assert "0013" in caplog.text


class TestSplits:
    def test_a_share_of_each_class_is_kept_apart(self, tmp_path: Path) -> None:
        write_classes(tmp_path / "set", 10)
        data = opened(root=str(tmp_path / "set"), val_share=0.2)
        parts = {kind: set(indices) for kind, (_, _, indices) in data._parts.items()}
        assert len(parts["train"]) == 24
        assert parts["train"].isdisjoint(parts["val"])
        assert parts["train"] | parts["val"] == set(range(30))
        assert parts["test"] == parts["val"]
        assert batches(data.val_dataloader())[1].bincount().tolist() == [2, 2, 2]
        torch.manual_seed(7)
        np.random.seed(7)
        assert set(opened(root=str(tmp_path / "set"), val_share=0.2)._parts["val"][2]) == parts["val"]

    def test_a_class_of_one_image_is_for_training(self, tmp_path: Path) -> None:
        write_classes(tmp_path / "set", 5, ("blue", "green"))
        write_classes(tmp_path / "set", 1, ("red",))
        data = opened(root=str(tmp_path / "set"))
        assert batches(data.val_dataloader())[1].bincount().tolist() == [1, 1]

    def test_other_names_of_splits(self, folder: Path) -> None:
        (folder / "val").rename(folder / "validation")
        (folder / "train").rename(folder / "mine")
        data = opened(root=str(folder), train_split="mine")
        assert len(batches(data.val_dataloader())[1]) == 6
        with pytest.raises(ValueError, match=r"no split 'yours', there are: mine, validation"):
            opened(root=str(folder), train_split="yours")
        with pytest.raises(ValueError, match=r"no training split.*there are: mine, validation"):
            opened(root=str(folder))

    def test_evaluation_alone(self, folder: Path) -> None:
        (folder / "train").rename(folder.parent / "away")
        assert len(batches(opened("validate", root=str(folder)).val_dataloader())[1]) == 6

    def test_a_class_that_validation_lacks_keeps_its_label(self, folder: Path) -> None:
        for file in (folder / "val/blue").iterdir():
            file.unlink()
        (folder / "val/blue").rmdir()
        assert_colours_fit_labels(*batches(opened(root=str(folder)).val_dataloader()))

    def test_every_image_once_on_two_ranks(self, folder: Path) -> None:
        data = opened(root=str(folder))
        seen = []
        for rank in range(2):
            data.trainer = _Trainer(rank, 2)  # type: ignore[assignment]
            seen += [len(labels) for _, labels in data.val_dataloader()]
        assert sum(seen) == 6


class TestClasses:
    def test_a_class_that_training_lacks(self, folder: Path) -> None:
        (folder / "val/red").rename(folder / "val/pink")
        with pytest.raises(ValueError, match=r"split val: pink not among the 3 classes of the training images"):
            opened(root=str(folder))

    def test_an_empty_class(self, folder: Path) -> None:
        (folder / "train/black").mkdir()
        with pytest.raises(ValueError, match=r"train/black: a class folder without images"):
            opened(root=str(folder))

    def test_one_class(self, tmp_path: Path) -> None:
        write_classes(tmp_path / "set", 3, ("red",))
        with pytest.raises(ValueError, match=r"set: 1 class, expected at least two"):
            opened(root=str(tmp_path / "set"))

    def test_an_image_outside_of_the_classes(self, folder: Path) -> None:
        Image.new("RGB", (8, 8)).save(folder / "train/lost.png")
        with pytest.raises(ValueError, match=r"train/lost\.png: an image outside of class folders"):
            opened(root=str(folder))

    def test_classes_are_the_first_folders_and_hidden_ones_are_none(self, tmp_path: Path) -> None:
        for place in ("ant/day1", "ant/day2", "bee/day1", "bee/.ipynb_checkpoints", "__MACOSX"):
            (tmp_path / "set" / place).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8)).save(tmp_path / "set" / place / f"{number}.png")
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / "ant" / "._0.png")
        data = opened(root=str(tmp_path / "set"), val_share=0.25)
        assert data.class_names == ("ant", "bee")
        assert sum(len(labels) for _, labels in data.val_dataloader()) == 3

    @pytest.mark.parametrize("above", ["", "train", "./set/train"])
    def test_in_tar_files_too(self, tmp_path: Path, above: str) -> None:
        for name in ("ant/day1/a.png", "bee/day1/a.png", "bee/b.png"):
            (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "train" / name)
        for name in ("ant/._a.png", ".DS_Store", "__MACOSX/bee/._b.png", ".ipynb_checkpoints/c.png", "@eaDir/d.png"):
            (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "train" / name).write_bytes(b"Mac OS X")
        (tmp_path / "tars").mkdir()
        for split in ("train", "val"):
            with tarfile.open(tmp_path / f"tars/{split}.tar", "w") as tar:
                tar.add(tmp_path / "train", above)
        data = opened(root=str(tmp_path / "tars"))
        assert data.class_names == ("ant", "bee")
        assert batches(data.val_dataloader())[1].tolist() == [0, 1, 1]

    def test_hidden_members_of_shards_are_none(self, shards: dict[str, Any]) -> None:
        for file in Path(shards["root"]).glob("val-*.tar"):
            with tarfile.open(file, "a") as tar:
                for name in ("._0000.png", "__MACOSX/._0000.png", "__MACOSX/x.png", ".DS_Store"):
                    info = tarfile.TarInfo(name)
                    info.size = 4
                    tar.addfile(info, io.BytesIO(b"Mac "))
        images, _ = batches(opened(**shards).val_dataloader())
        assert len(images) == 6

    def test_no_images(self, tmp_path: Path) -> None:
        (tmp_path / "set").mkdir()
        with pytest.raises(ValueError, match=r"set: cannot be read.*Found 0 images"):
            opened(root=str(tmp_path / "set"))
        with pytest.raises(FileNotFoundError, match="nowhere"):
            opened(root=str(tmp_path / "nowhere"))

    def test_a_class_file_sets_the_order(self, folder: Path, tmp_path: Path) -> None:
        file = tmp_path / "names.txt"
        file.write_text("red\ngreen\nblue\n")
        data = opened(root=str(folder), class_file=str(file))
        images, labels = batches(data.val_dataloader())
        assert torch.equal(images.mean((2, 3)).argmax(1), labels)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ("red green blue black", r"names\.txt: black without images in .*train"),
            ("red green", r"split train: blue not among the 2 classes of .*names\.txt"),
            ("red red blue", r"names\.txt: 3 class names, 2 of them distinct"),
        ],
    )
    def test_a_class_file_that_does_not_fit(self, folder: Path, tmp_path: Path, names: str, message: str) -> None:
        file = tmp_path / "names.txt"
        file.write_text(names.replace(" ", "\n"))
        with pytest.raises(ValueError, match=message):
            opened(root=str(folder), class_file=str(file))


class TestAugmentation:
    RECIPE: dict[str, Any] = {  # noqa: RUF012
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "random_erasing": 0.25,
        "hflip": 0.5,
        "crop_pct": 0.9,
    }

    @pytest.fixture
    def noise(self, tmp_path: Path) -> str:
        random = np.random.default_rng(0)
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            for i in range(10):
                Image.fromarray(random.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
        return str(tmp_path)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_the_number_of_workers_changes_nothing(self, noise: str, channels: int) -> None:
        arguments = {**self.RECIPE, "in_chans": channels, "mean": (0.5,) * channels, "std": (0.2,) * channels}
        loaders = [opened(root=noise, **arguments, num_workers=workers).train_dataloader() for workers in (0, 2)]
        for _ in range(2):  # the second pass is by workers that live on
            (images, labels), (others, other_labels) = map(batches, loaders)
            assert images.shape[1] == channels
            assert torch.equal(images, others)
            assert torch.equal(labels, other_labels)
            for loader in loaders:
                loader.batch_sampler.set_epoch(1)
        loaders[1]._iterator._shutdown_workers()

    def test_epochs_differ(self, noise: str) -> None:
        loader = opened(root=noise, **self.RECIPE).train_dataloader()
        first = batches(loader)[0]
        loader.batch_sampler.set_epoch(1)  # type: ignore[union-attr]
        assert not torch.equal(first.sort(0).values, batches(loader)[0].sort(0).values)

    def test_repeats_are_augmented_differently(self, folder: Path) -> None:
        gradient = Image.fromarray(np.tile(np.arange(0, 240, 6, dtype=np.uint8), (40, 1)))
        for i, file in enumerate(sorted((folder / "train").rglob("*.png"))):
            gradient.rotate(15 * i).convert("RGB").save(file)
        images, labels = next(iter(opened(root=str(folder), repeats=3, batch_size=6).train_dataloader()))
        assert [len(set(labels[i : i + 3].tolist())) for i in (0, 3)] == [1, 1]
        assert not any(torch.equal(images[i], images[i + 1]) for i in range(5))

    def test_evaluation_scales_and_crops_as_told(self, noise: str) -> None:
        """Half of the side is cut away: what remains is the centre at its own scale."""
        data = opened(root=noise, image_size=20, crop_pct=0.5)
        reader, _, indices = data._parts["val"]
        expected = np.asarray(Image.open(reader.samples[indices[0]][0]))[10:30, 10:30]
        image = next(iter(data.val_dataloader()))[0][0]
        assert np.abs(image.permute(1, 2, 0).numpy() * 255 - expected).max() < 0.01

    def test_padded_crops_only_shift(self, noise: str) -> None:
        data = opened(root=noise, image_size=40, crop_padding=4, num_workers=0)
        transform = data.train_transform()
        white = Image.new("RGB", (40, 40), "white")
        torch.manual_seed(0)
        heights = {int(transform(white)[0].amax(1).sum()) for _ in range(60)}
        assert heights == {36, 37, 38, 39, 40}

    def test_normalisation(self, folder: Path) -> None:
        data = opened(root=str(folder), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        images = batches(data.val_dataloader())[0]
        assert images.min().item() == pytest.approx(-2)
        assert images.max().item() == pytest.approx((250 / 255 - 0.5) / 0.25)
        assert data.data_config["mean"] == (0.5, 0.5, 0.5)
        assert data.data_config["input_size"] == (3, 16, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hflip": 1.5}, "hflip is 1.5"),
        ({"val_share": 0.0}, "val_share is 0.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"in_chans": 1}, "mean has 3 values"),
        ({"reader": "tfds/mnist"}, "reader is 'tfds/mnist'"),
        ({"reader": "wds", "repeats": 3}, "repeats"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageData(**{**PLAIN, **arguments})


def test_test_images_are_others_than_the_validations_where_they_have_a_split_of_their_own(folder: Path) -> None:
    assert not opened(root=str(folder)).has_test
    assert not opened(root=str(folder), test_split="val").has_test
    write_classes(folder / "test", 1)
    assert opened(root=str(folder)).has_test
