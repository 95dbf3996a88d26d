"""The figures that the paper prints, kept as text because their rounding matters. None of them is measured here.

The paper is "Inception Transformer", NeurIPS 2022, https://arxiv.org/abs/2205.12956.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        method: The paper's name for the model.
        parameters: The number of parameters in millions.
        multiply_adds: The number of multiply-adds in billions.
        size: The height and width of the (test) images in pixels.
        accuracies: A value for each of the table's ``accuracies``, or '-' if the paper gives none.
        model: timm's name for the model, or '' if timm lacks it.
        model_args: The arguments with which timm's model equals this one.
        kind: 'CNN', 'ViT' or 'Hybrid', or '' if the paper does not say.
        note: What a reader must know before comparing the figures of this row.
        stand_in: Whether ``model`` is only a close relative of the paper's model, so that its figures cannot check the
            paper's.
    """

    method: str
    parameters: str
    multiply_adds: str
    size: tuple[int, int]
    accuracies: tuple[str, ...]
    model: str = ""
    model_args: dict[str, Any] = field(default_factory=dict)
    kind: str = ""
    note: str = ""
    stand_in: bool = False


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        number: The number of the table.
        title: The title of the table.
        accuracies: The names of its accuracy columns.
        rows: The rows of the table.
    """

    number: int
    title: str
    accuracies: tuple[str, ...]
    rows: tuple[Row, ...]


_CNN, _VIT, _HYBRID = "CNN", "ViT", "Hybrid"

_COATNET = "CoAtNet in timm is a re-implementation, not its authors' code."
_PVT_V2: dict[str, Any] = {
    "note": "timm carries PVT v2, the second version of the model in the paper's row.",
    "stand_in": True,
}
_AT_384 = (
    "The released weights for 384 pixels hold position embeddings for 224 pixels, which are resized as the network "
    "runs, so that a model has as many parameters at 384 as at 224."
)
_COCO = (800, 1280)
_ADE20K = (512, 2048)
_RESNET_C = "ResNet-C, usual in segmentation with three 3x3 convolutions in its stem, gives the paper's figures."
_UPERNET = (
    "This row is from the authors' page, not from the paper. The decoder is that of segmentation_models_pytorch, which "
    "lacks the auxiliary head that is usual in training; with that head (0.8 M), the parameters are 49 M too."
)
_RAMP = "The paper does not print this ramp's heads per block; those of the preset give the paper's figures."

# fmt: off
TABLE_1 = PaperTable(1, "Classification on ImageNet-1K", ("top-1", "top-5"), (
    # about 20 M parameters
    Row("RSB-ResNet-50",  "26",  "4.1",  (224, 224), ("80.4", "-"),    "resnet50", kind=_CNN),
    Row("ConvNeXt-T",     "28",  "4.5",  (224, 224), ("82.1", "-"),    "convnext_tiny", kind=_CNN),
    Row("DeiT-S",         "22",  "4.6",  (224, 224), ("79.8", "95.0"), "deit_small_patch16_224", kind=_VIT),
    Row("PVT-S",          "25",  "3.8",  (224, 224), ("79.8", "-"),    "pvt_v2_b2", kind=_VIT, **_PVT_V2),
    Row("T2T-14",         "22",  "5.2",  (224, 224), ("80.7", "-"),    kind=_VIT),
    Row("Swin-T",         "29",  "4.5",  (224, 224), ("81.3", "95.5"), "swin_tiny_patch4_window7_224", kind=_VIT),
    Row("Focal-T",        "29",  "4.9",  (224, 224), ("82.2", "95.9"), kind=_VIT),
    Row("CSwin-T",        "23",  "4.3",  (224, 224), ("82.7", "-"),    kind=_VIT),
    Row("CvT-13",         "20",  "4.5",  (224, 224), ("81.6", "-"),    kind=_HYBRID),
    Row("CoAtNet-0",      "25",  "4.2",  (224, 224), ("81.6", "-"),    "coatnet_0_224", kind=_HYBRID, note=_COATNET),
    Row("Container",      "22",  "8.1",  (224, 224), ("82.7", "-"),    kind=_HYBRID),
    Row("ViTAE-S",        "24",  "5.6",  (224, 224), ("82.0", "95.9"), kind=_HYBRID),
    Row("ViTAEv2-S",      "19",  "5.7",  (224, 224), ("82.6", "96.2"), kind=_HYBRID),
    Row("UniFormer-S",    "22",  "3.6",  (224, 224), ("82.9", "-"),    kind=_HYBRID),
    Row("iFormer-S",      "20",  "4.8",  (224, 224), ("83.4", "96.6"), "iformer_small", kind=_HYBRID),
    # about 50 M
    Row("RSB-ResNet-101", "45",  "7.9",  (224, 224), ("81.5", "-"),    "resnet101", kind=_CNN),
    Row("RSB-ResNet-152", "60",  "11.6", (224, 224), ("82.0", "-"),    "resnet152", kind=_CNN),
    Row("ConvNeXt-S",     "50",  "8.7",  (224, 224), ("83.1", "-"),    "convnext_small", kind=_CNN),
    Row("PVT-L",          "61",  "9.8",  (224, 224), ("81.7", "-"),    "pvt_v2_b4", kind=_VIT, **_PVT_V2),
    Row("T2T-24",         "64",  "13.2", (224, 224), ("82.2", "-"),    kind=_VIT),
    Row("Swin-S",         "50",  "8.7",  (224, 224), ("83.0", "96.2"), "swin_small_patch4_window7_224", kind=_VIT),
    Row("Focal-S",        "51",  "9.1",  (224, 224), ("83.5", "96.2"), kind=_VIT),
    Row("CSwin-S",        "35",  "6.9",  (224, 224), ("83.6", "-"),    kind=_VIT),
    Row("CvT-21",         "32",  "7.1",  (224, 224), ("82.5", "-"),    kind=_HYBRID),
    Row("CoAtNet-1",      "42",  "8.4",  (224, 224), ("83.3", "-"),    "coatnet_1_224", kind=_HYBRID, note=_COATNET),
    Row("ViTAEv2-48M",    "49",  "13.3", (224, 224), ("83.8", "96.6"), kind=_HYBRID),
    Row("UniFormer-B",    "50",  "8.3",  (224, 224), ("83.9", "-"),    kind=_HYBRID),
    Row("iFormer-B",      "48",  "9.4",  (224, 224), ("84.6", "97.0"), "iformer_base", kind=_HYBRID),
    # about 100 M
    Row("RegNetY-16GF",   "84",  "16.0", (224, 224), ("82.9", "-"),    "regnety_160", kind=_CNN),
    Row("ConvNeXt-B",     "89",  "15.4", (224, 224), ("83.8", "-"),    "convnext_base", kind=_CNN),
    Row("DeiT-B",         "86",  "17.5", (224, 224), ("81.8", "95.6"), "deit_base_patch16_224", kind=_VIT),
    Row("Swin-B",         "88",  "15.4", (224, 224), ("83.3", "96.5"), "swin_base_patch4_window7_224", kind=_VIT),
    Row("Focal-B",        "90",  "16.0", (224, 224), ("83.8", "96.5"), kind=_VIT),
    Row("CSwin-B",        "78",  "15.0", (224, 224), ("84.2", "-"),    kind=_VIT),
    Row("BoTNet-T7",      "79",  "19.3", (256, 256), ("84.2", "-"),    kind=_HYBRID),
    Row("CoAtNet-3",      "168", "34.7", (224, 224), ("84.5", "-"),    "coatnet_3_224", kind=_HYBRID, note=_COATNET),
    Row("ViTAEv2-B",      "90",  "24.3", (224, 224), ("84.6", "96.9"), kind=_HYBRID),
    Row("iFormer-L",      "87",  "14.0", (224, 224), ("84.8", "97.0"), "iformer_large", kind=_HYBRID),
))

TABLE_2 = PaperTable(2, "Classification on ImageNet-1K at larger resolution", ("top-1",), (
    Row("EfficientNet-B5",   "30",  "9.9",  (456, 456), ("83.6",), "tf_efficientnet_b5"),
    Row("EfficientNetV2-S",  "22",  "8.5",  (384, 384), ("83.9",), "tf_efficientnetv2_s"),
    Row("CSwin-T ↑384",      "23",  "14.0", (384, 384), ("84.3",)),
    Row("CvT-13 ↑384",       "20",  "16.3", (384, 384), ("83.0",)),
    Row("CoAtNet-0 ↑384",    "20",  "13.4", (384, 384), ("83.9",), "coatnet_0_224", {"img_size": 384},
        note=f"{_COATNET} The paper's Table 1 gives the same network 25 M."),
    Row("ViTAEv2-S ↑384",    "19",  "17.8", (384, 384), ("83.8",)),
    Row("iFormer-S ↑384",    "20",  "16.1", (384, 384), ("84.6",), "iformer_small_384", note=_AT_384),
    Row("EfficientNet-B7",   "66",  "39.2", (600, 600), ("84.3",), "tf_efficientnet_b7"),
    Row("EfficientNetV2-M",  "54",  "25.0", (480, 480), ("85.1",), "tf_efficientnetv2_m"),
    Row("ViTAEv2-48M ↑384",  "49",  "41.1", (384, 384), ("84.7",)),
    Row("CSwin-S ↑384",      "35",  "22.0", (384, 384), ("85.0",)),
    Row("CoAtNet-1 ↑384",    "42",  "27.4", (384, 384), ("85.1",), "coatnet_1_224", {"img_size": 384}, note=_COATNET),
    Row("iFormer-B ↑384",    "48",  "30.5", (384, 384), ("85.7",), "iformer_base_384", note=_AT_384),
    Row("EfficientNetV2-L",  "121", "53",   (480, 480), ("85.7",), "tf_efficientnetv2_l"),
    Row("Swin-B ↑384",       "88",  "47.0", (384, 384), ("84.2",), "swin_base_patch4_window12_384"),
    Row("CSwin-B ↑384",      "78",  "47.0", (384, 384), ("85.4",)),
    Row("ViTAEv2-B ↑384",    "90",  "74.4", (384, 384), ("85.3",)),
    Row("CoAtNet-2 ↑384",    "75",  "49.8", (384, 384), ("85.7",), "coatnet_2_224", {"img_size": 384}, note=_COATNET),
    Row("iFormer-L ↑384",    "87",  "45.3", (384, 384), ("85.8",), "iformer_large_384", note=_AT_384),
))

TABLE_3 = PaperTable(3, "Mask R-CNN on COCO, 1x schedule", ("box AP", "mask AP"), (
    Row("ResNet50",     "44", "260", _COCO, ("38.0", "34.4"), "resnet50"),
    Row("PVT-S",        "44", "245", _COCO, ("40.4", "37.8"), "pvt_v2_b2", **_PVT_V2),
    Row("TwinsP-S",     "44", "245", _COCO, ("42.9", "40.0"), "twins_pcpvt_small"),
    Row("Twins-S",      "44", "228", _COCO, ("43.4", "40.3"), "twins_svt_small"),
    Row("Swin-T",       "48", "264", _COCO, ("42.2", "39.1"),
        "swin_tiny_patch4_window7_224", {"img_size": _COCO}),
    Row("ViL-S",        "45", "218", _COCO, ("44.9", "41.0")),
    Row("Focal-T",      "49", "291", _COCO, ("44.8", "41.0")),
    Row("UniFormer-S",  "41", "269", _COCO, ("45.6", "41.6")),
    Row("iFormer-S",    "40", "263", _COCO, ("46.2", "41.9"), "iformer_small"),
    Row("ResNet101",    "63", "336", _COCO, ("40.4", "36.4"), "resnet101"),
    Row("X101-32",      "63", "340", _COCO, ("41.9", "37.5"), "resnext101_32x4d"),
    Row("PVT-M",        "64", "302", _COCO, ("42.0", "39.0"), "pvt_v2_b3", **_PVT_V2),
    Row("TwinsP-B",     "64", "302", _COCO, ("44.6", "40.9"), "twins_pcpvt_base"),
    Row("Twins-B",      "76", "340", _COCO, ("45.2", "41.5"), "twins_svt_base"),
    Row("Swin-S",       "69", "354", _COCO, ("44.8", "40.9"),
        "swin_small_patch4_window7_224", {"img_size": _COCO}),
    Row("Focal-S",      "71", "401", _COCO, ("47.4", "42.8")),
    Row("CSwin-S",      "54", "342", _COCO, ("47.9", "43.2")),
    Row("UniFormer-B",  "69", "399", _COCO, ("47.4", "43.1")),
    Row("iFormer-B",    "67", "351", _COCO, ("48.3", "43.4"), "iformer_base"),
))

TABLE_4 = PaperTable(4, "Semantic FPN on ADE20K", ("mIoU",), (
    Row("ResNet50",        "29", "183", _ADE20K, ("36.7",), "resnet50c", note=_RESNET_C),
    Row("PVT-S",           "28", "161", _ADE20K, ("39.8",), "pvt_v2_b2", **_PVT_V2),
    Row("TwinsP-S",        "28", "162", _ADE20K, ("44.3",), "twins_pcpvt_small"),
    Row("Twins-S",         "28", "144", _ADE20K, ("43.2",), "twins_svt_small"),
    Row("Swin-T",          "32", "182", _ADE20K, ("41.5",),
        "swin_tiny_patch4_window7_224", {"img_size": _ADE20K}),
    Row("UniFormer-S h32", "25", "199", _ADE20K, ("46.2",)),
    Row("UniFormer-S",     "25", "247", _ADE20K, ("46.6",)),
    Row("UniFormer-B",     "54", "471", _ADE20K, ("48.0",)),
    Row("iFormer-S",       "24", "181", _ADE20K, ("48.6",), "iformer_small"),
    Row("iFormer-S UPerNet", "49", "938", _ADE20K, ("48.4",), "iformer_small", {"architecture": "upernet"},
        note=_UPERNET),
))

TABLE_5 = PaperTable(5, "Ablation of the Inception mixer and the frequency ramp, 100 epochs", ("top-1",), (
    # the mixer
    Row("attention",                    "21", "5.2", (224, 224), ("80.8",), "iformer_small_attention"),
    Row("attention + max-pool",         "20", "4.9", (224, 224), ("81.0",), "iformer_small_attention_pool"),
    Row("attention + max-pool + conv",  "20", "4.8", (224, 224), ("81.2",), "iformer_small"),
    # the ramp, from the lowest to the highest layers
    Row("Cl/C falls, Ch/C rises",       "19", "4.7", (224, 224), ("80.5",), "iformer_small_ramp_down", note=_RAMP),
    Row("Cl/C = Ch/C",                  "19", "4.7", (224, 224), ("80.7",), "iformer_small_ramp_flat", note=_RAMP),
    Row("Cl/C rises, Ch/C falls",       "20", "4.8", (224, 224), ("81.2",), "iformer_small"),
))
# fmt: on
