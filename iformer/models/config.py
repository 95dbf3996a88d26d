"""What ``config.json`` of a saved folder may say: known keys, plain values and sane bounds, for it may be a stranger's.

A saved network is built from this file. Nothing in it can name code, a file or an address: what would load or fetch
something is refused, and so is what this project never wrote. timm's own folders hold more about their classifiers; of
that, only what is listed here is taken.
"""

import inspect
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import TypeAliasType  # typing's own comes with Python 3.12

from iformer.common.ranges import Byte, in_words

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
    """Refuse the arguments of ``timm.create_model`` itself, which say where weights come from and go to."""
    for name in arguments:
        if name in inspect.signature(timm.create_model).parameters or name.startswith("pretrained"):
            raise ValueError(f"{name} is not an argument that builds a network")
    return arguments


Model = Annotated[Text, AfterValidator(_registered)]
Arguments = Annotated[dict[str, Plain], AfterValidator(_building_only)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class _Builder(BaseModel):
    """Arguments of a function that builds a network; those that are not listed are the backbone's."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Plain]

    @model_validator(mode="after")
    def _check_others(self) -> "_Builder":
        _building_only(self.__pydantic_extra__)
        return self


class Preprocessing(BaseModel):
    """What is taken of timm's ``pretrained_cfg``."""

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
    """A classifier, as timm writes it: ``architecture`` and ``model_args`` build it."""

    model_config = ConfigDict(protected_namespaces=())

    task: Literal["classification"] = "classification"
    architecture: Model
    num_classes: Classes
    global_pool: Text | None = None
    label_names: Names | dict[str, Text] | None = None
    model_args: Arguments = {}
    pretrained_cfg: Preprocessing


class SegmenterNetwork(_Builder):
    """Arguments of :func:`iformer.segmentation.model.build`."""

    architecture: Literal["semantic_fpn", "upernet"]
    backbone: Model
    num_classes: Annotated[int, Field(ge=1, le=255)]
    neck_channels: Width = 256
    head_channels: Width = 128
    channels: Width = 512


class SegmenterConfig(_Strict):
    """A segmenter: its network, how images become its input, and what its classes are."""

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


class DetectorNetwork(_Builder):
    """Arguments of :func:`iformer.detection.model.mask_rcnn`."""

    backbone: Model
    num_classes: Annotated[int, Field(ge=1, le=100_000)]
    backbone_args: Arguments = {}
    channels: Width = 256
    anchor_scale: Annotated[int, Field(ge=1, le=1000)] = 8
    min_size: Side | list[Side] = 800
    max_size: Side = 1333


class DetectorConfig(_Strict):
    """A detector: its network, and what its classes are called and numbered in COCO's files."""

    task: Literal["detection"]
    model: DetectorNetwork
    class_names: Names
    category_ids: list[int]

    @model_validator(mode="after")
    def _check_classes(self) -> "DetectorConfig":
        counts = {self.model.num_classes, len(self.class_names), len(self.category_ids)}
        if len(counts) > 1:
            raise ValueError("num_classes, class_names and category_ids differ in number")
        return self


SCHEMAS: dict[str, type[BaseModel]] = {
    "classification": ClassifierConfig,
    "segmentation": SegmenterConfig,
    "detection": DetectorConfig,
}


def checkable(text: str) -> str:
    """Return JSON without the bytes of names that are no text, which pydantic takes for damage."""
    return re.sub(r"\\ud[89a-f][0-9a-f]{2}", "?", text, flags=re.IGNORECASE)


def read(file: Path) -> dict[str, Any]:
    """Read and check a ``config.json``; ``task`` is ``classification`` where it says none.

    Raises:
        ValueError: It is not JSON, or a key or value in it is none that a saved network has; names the first.
        OSError: It cannot be read.
    """
    text = file.read_text(encoding="utf-8", errors="replace")
    try:
        config = {"task": "classification", **json.loads(text)}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: not a saved network's, it is no JSON object ({error})") from error
    if config["task"] not in SCHEMAS:
        raise ValueError(f"{file}: task is {config['task']!r}, expected one of {', '.join(SCHEMAS)}")
    try:
        SCHEMAS[config["task"]].model_validate_json(checkable(text), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"] if str(part).isidentifier() or isinstance(part, int))
        raise ValueError(f"{file}: {f'{where}: ' if where else ''}{in_words(first['msg'])}") from error
    return config
