"""The schema of a saved model's ``config.json``: known keys, plain values and sane bounds.

The file may come from a stranger, and a network is built from it. Nothing in it can name code, a file or an address:
keys that would load or fetch something are refused, and so are keys that this project never wrote. The folders that
timm itself writes say more about their classifiers; only the keys listed here are read from them.
"""

import inspect
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import TypeAliasType  # in typing from Python 3.12 on

from iformer.common.ranges import Byte, Share, in_words

Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=1000)]
Plain = TypeAliasType(
    "Plain",
    "bool | Annotated[int, Field(ge=-100_000, le=100_000)] | Number | Text | list[Plain] | dict[str, Plain] | None",
)
Width = Annotated[int, Field(ge=1, le=8192)]
Side = Annotated[int, Field(ge=1, le=10_000)]
Size = tuple[Side, Side]
Classes = Annotated[int, Field(ge=0, le=1_000_000)]
Names = Annotated[list[Text], Field(max_length=1_000_000)]
Channels = Annotated[tuple[Number, ...], Field(min_length=1, max_length=1000)]


def _registered(name: str) -> str:
    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}")
    return name


def _building_only(arguments: dict[str, Any]) -> dict[str, Any]:
    """Refuse the arguments of ``timm.create_model`` itself, which say where weights are loaded from."""
    for name in arguments:
        if name in inspect.signature(timm.create_model).parameters or name.startswith("pretrained"):
            raise ValueError(f"{name} is not an argument that builds a network")
    return arguments


Model = Annotated[Text, AfterValidator(_registered)]
Arguments = Annotated[dict[str, Plain], AfterValidator(_building_only)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Preprocessing(BaseModel):
    """The keys that are read from timm's ``pretrained_cfg``."""

    input_size: tuple[Side, Side, Side] = (3, 224, 224)
    min_input_size: tuple[Side, Side, Side] | None = None
    test_input_size: tuple[Side, Side, Side] | None = None
    fixed_input_size: bool = False
    interpolation: Text = "bicubic"
    crop_pct: Annotated[float, Field(gt=0, le=10)] = 1.0
    test_crop_pct: Annotated[float, Field(gt=0, le=10)] | None = None
    crop_mode: Literal["center", "squash", "border"] = "center"
    mean: Channels
    std: Channels
    pool_size: tuple[Side, Side] | None = None
    first_conv: Text | list[Text] | None = None
    classifier: Text | list[Text] | None = None


class ClassifierConfig(BaseModel):
    """A classifier as timm writes it; it is built from ``architecture`` and ``model_args``."""

    model_config = ConfigDict(protected_namespaces=())

    task: Literal["classification"] = "classification"
    architecture: Model
    num_classes: Classes
    global_pool: Text | None = None
    label_names: Names | dict[str, Text] | None = None
    thresholds: list[Share] | None = None
    model_args: Arguments = {}
    pretrained_cfg: Preprocessing

    @model_validator(mode="after")
    def _check_thresholds(self) -> "ClassifierConfig":
        if self.thresholds is not None and len(self.thresholds) != self.num_classes:
            raise ValueError(
                f"thresholds has {len(self.thresholds)} values, expected {self.num_classes}, one per class"
            )
        return self


class SegmenterNetwork(_Strict):
    """Arguments of :func:`iformer.segmentation.model.build`."""

    architecture: Literal["semantic_fpn", "upernet"]
    backbone: Model
    num_classes: Annotated[int, Field(ge=1, le=255)]
    backbone_args: Arguments = {}
    neck_channels: Width = 256
    head_channels: Width = 128
    channels: Width = 512


class LabelMaps(_Strict):
    """Arguments of :class:`iformer.segmentation.data.SegmentationData`: how label maps are named and read."""

    image_suffix: Text = ""
    label_suffix: Text = ".png"
    first_label: Annotated[int, Field(ge=0, lt=1 << 16)] = 0
    ignore_labels: Annotated[list[Annotated[int, Field(ge=0, lt=1 << 16)]], Field(max_length=1 << 16)] = []


class SegmenterConfig(_Strict):
    """A segmenter: its network, its preprocessing, and its classes."""

    task: Literal["segmentation"]
    network: SegmenterNetwork
    class_names: Names
    palette: list[tuple[Byte, Byte, Byte]]
    mean: tuple[Number, Number, Number]
    std: tuple[Number, Number, Number]
    resize: Size | None = None
    crop: Size | None = None
    window: Size | None = None
    flip_test: bool = False
    label_maps: LabelMaps | None = None


class DetectorNetwork(BaseModel):
    """Arguments of :func:`iformer.detection.model.build`; keys not listed here are those of torchvision's detector."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Plain]

    architecture: Literal["mask_rcnn", "faster_rcnn"]
    backbone: Model
    num_classes: Annotated[int, Field(ge=1, le=100_000)]
    backbone_args: Arguments = {}
    channels: Width = 256
    anchor_scale: Annotated[int, Field(ge=1, le=1000)] = 8
    min_size: Side | list[Side] = 800
    max_size: Side = 1333

    @model_validator(mode="after")
    def _check_others(self) -> "DetectorNetwork":
        _building_only(self.__pydantic_extra__)
        return self


class DetectorConfig(_Strict):
    """A detector: its network, and the names and COCO category numbers of its classes."""

    task: Literal["detection"]
    network: DetectorNetwork
    class_names: Names
    category_ids: list[int]

    @model_validator(mode="after")
    def _check_classes(self) -> "DetectorConfig":
        counts = {self.network.num_classes, len(self.class_names), len(self.category_ids)}
        if len(counts) > 1:
            raise ValueError("num_classes, class_names and category_ids differ in number")
        return self


SCHEMAS: dict[str, type[BaseModel]] = {
    "classification": ClassifierConfig,
    "segmentation": SegmenterConfig,
    "detection": DetectorConfig,
}


def checkable(text: str) -> str:
    """Return JSON without the escapes of undecodable bytes in names, which pydantic would take for damage."""
    return re.sub(r"\\ud[89a-f][0-9a-f]{2}", "?", text, flags=re.IGNORECASE)


def read(file: Path) -> dict[str, Any]:
    """Read and check a ``config.json``.

    Returns:
        The configuration with the current keys; ``task`` is ``classification`` if the file does not state it.

    Raises:
        ValueError: The file is not JSON, or has a key or value that no saved network has; the message names the first.
        OSError: The file cannot be read.
    """
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        config = {"task": "classification", **json.loads(text)}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: not a saved network's configuration, expected a JSON object ({error})") from error
    if config["task"] not in SCHEMAS:
        raise ValueError(f"{file}: task is {config['task']!r}, expected one of {', '.join(SCHEMAS)}")
    config = _with_todays_keys(config)
    try:
        SCHEMAS[config["task"]].model_validate_json(checkable(json.dumps(config)), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"] if str(part).isidentifier() or isinstance(part, int))
        raise ValueError(f"{file}: {f'{where}: ' if where else ''}{in_words(first['msg'])}") from error
    return config


def _with_todays_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration that an earlier version may have written, with the current keys.

    Earlier versions wrote a detector's network under ``model``, and the arguments of a segmenter's backbone beside
    those of its network.
    """
    if config["task"] == "detection" and isinstance(config.get("model"), dict):
        config["network"] = {"architecture": "mask_rcnn", **config.pop("model")}
    network = config.get("network")
    if config["task"] == "segmentation" and isinstance(network, dict):
        others = {key: network[key] for key in network if key not in SegmenterNetwork.model_fields}
        if others:
            own = {key: network[key] for key in network if key not in others}
            config["network"] = {**own, "backbone_args": {**others, **own.get("backbone_args", {})}}
    return config
