"""Conversion of the authors' released checkpoints to this package's names.

The format is that of the release at https://github.com/sail-sg/iFormer: a state dict saved by ``torch.save``.
"""

import pickle
import re
from pathlib import Path

import timm
from safetensors.torch import save_file
from timm.models import load_state_dict
from torch import Tensor, nn

from iformer.common.files import written
from iformer.models.inception_transformer import resize_pos_embed
from iformer.models.shared_ramps import is_shared, of_ramp

# Pairs of a pattern of released names and our name, applied in order. In the release, the blocks of stage N are called
# blocksN, its position embedding pos_embedN, and the downsampling before it patch_embedN (the stem has no number).
RENAMES = (
    (r"^patch_embed\.proj(\d)\.", r"stem.conv\1."),
    (r"^patch_embed\.norm(\d)\.", r"stem.norm\1."),
    (r"^patch_embed(\d)\.proj\.", r"stages.\1.downsample.conv."),
    (r"^patch_embed(\d)\.norm\.", r"stages.\1.downsample.norm."),
    (r"^pos_embed(\d)$", r"stages.\1.pos_embed"),
    (r"^blocks(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.attn\.high_mixer\.conv1\.", r".mixer.conv_branch.fc."),
    (r"\.attn\.high_mixer\.proj1\.", r".mixer.conv_branch.conv."),
    (r"\.attn\.high_mixer\.proj2\.", r".mixer.pool_branch.fc."),
    (r"\.attn\.low_mixer\.qkv\.", r".mixer.attn_branch.qkv."),
    (r"\.attn\.conv_fuse\.", r".mixer.fusion."),
    (r"\.attn\.proj\.", r".mixer.proj."),
    (r"\.layer_scale_(\d)$", r".layer_scale\1.gamma"),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)

REFUSAL = "not a checkpoint of this model: "
"""What an error begins with that says why weights do not fit a model."""


def is_official(state_dict: dict[str, Tensor]) -> bool:
    """Return whether the keys are those of the authors' release."""
    return "patch_embed.proj1.weight" in state_dict


def rename(key: str) -> str:
    """Return our name of a parameter or buffer of the released model."""
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    # The release counts stages from 1.
    return re.sub(r"^stages\.(\d)", lambda match: f"stages.{int(match[1]) - 1}", key)


def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a released state dict to :class:`~iformer.models.inception_transformer.InceptionTransformer`'s.

    The released 1x1 convolutions become the linear layers that the paper calls FC, and the position embeddings lose
    their batch dimension.
    """
    converted = {}
    for key, value in state_dict.items():
        if value.ndim == 4 and value.shape[2:] == (1, 1):
            value = value[:, :, 0, 0]
        elif key.startswith("pos_embed"):
            value = value[0]
        converted[rename(key)] = value
    return converted


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Adapt a state dict with released or our own keys to ``model``; timm calls it for pretrained weights.

    Of weights that all ramps share, see :mod:`iformer.models.shared_ramps`, the model gets those of its ramp. Position
    embeddings are resized to the model's. The classifier and the input channels of the first convolution are adapted by
    timm.

    Raises:
        ValueError: The checkpoint belongs to another architecture; the message names a key.
    """
    state_dict = without_trainer(state_dict)
    if is_official(state_dict):
        state_dict = convert(state_dict)
    if is_shared(state_dict):
        state_dict = of_ramp(state_dict, model)
    expected = {key: value.shape for key, value in model.state_dict().items() if not key.startswith("head.")}
    adapted = {}
    for key, value in state_dict.items():
        if key.endswith(".pos_embed") and key in expected and value.ndim == 3:
            value = resize_pos_embed(value, list(expected[key][:2]))
        adapted[key] = value

    missing = [key for key in expected if key not in adapted]
    if missing:
        raise ValueError(f"{REFUSAL}it lacks {len(missing)} of the model's tensors, such as {missing[0]}")
    surplus = [key for key in adapted if key not in expected and not key.startswith("head.")]
    if surplus:
        raise ValueError(f"{REFUSAL}it has {len(surplus)} tensors that the model lacks, such as {surplus[0]}")
    for key, shape in expected.items():
        if adapted[key].shape != shape and key != "stem.conv1.weight":
            raise ValueError(f"{REFUSAL}its {key} has shape {tuple(adapted[key].shape)}, expected {tuple(shape)}")
    return adapted


def without_trainer(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the network alone, if it is that of a LightningModule with the network as ``model``."""
    inner = {key.removeprefix("model."): value for key, value in state_dict.items() if key.startswith("model.")}
    return inner or state_dict


def load(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a ``.pth``, ``.ckpt`` or ``.safetensors`` file without ever running code from it.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not a checkpoint, or contains more than tensors and plain containers.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: {'a folder, expected a file' if Path(path).is_dir() else 'no such file'}")
    try:
        state_dict = load_state_dict(str(path))
    except OSError:
        raise
    except Exception as error:  # a damaged file can make its reader fail with an error of any kind
        cause = error.__cause__
        if not isinstance(cause, pickle.UnpicklingError):
            reason = f"not a readable checkpoint ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        elif "global" in str(cause).lower():
            reason = "refused, it is not a plain file of tensors (loading it could run a stranger's code)"
        else:
            reason = "not a readable checkpoint"
        raise ValueError(f"{path}: {reason}") from error
    if not state_dict:
        raise ValueError(f"{path}: not a state dict, it is empty")
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: not a state dict, {key!r} is of type {type(value).__name__}, expected a tensor")
    return without_trainer(state_dict)


def convert_official(source: str | Path, target: str | Path, model: str = "") -> tuple[str, str]:
    """Convert a checkpoint of the authors' release to a safetensors file with our names.

    timm loads the result with ``pretrained_cfg_overlay=dict(file=target)``.

    Args:
        source: The released file.
        target: The file to write.
        model: The name of the preset that the weights belong to. The weights for 224 and for 384 pixels have the same
            names and shapes, so that by default the name of the file decides between them.

    Returns:
        The preset's name, and the reason why it was chosen.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        ValueError: ``source`` is not a released checkpoint, or its preset is not clear; or ``target`` does not end in
            ``.safetensors``.
        OSError: ``target`` could not be written.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: the file to write must end in .safetensors")
    state_dict = load(source)
    if not is_official(state_dict):
        raise ValueError(
            f"{source}: not a checkpoint of the iFormer release (its first key is {next(iter(state_dict))})"
        )
    state_dict = {key: value.contiguous() for key, value in convert(state_dict).items()}
    preset, reason = preset_of(state_dict, source, model)
    with written(target) as temporary:
        save_file(state_dict, temporary, metadata={"format": "pt", "architecture": preset})
    return preset, reason


def preset_of(state_dict: dict[str, Tensor], source: Path, model: str) -> tuple[str, str]:
    """Return the preset of released weights and the reason why it was chosen.

    The reason is ``model``, the shapes of the tensors, or the file's name.

    Raises:
        ValueError: The tensors fit no released model, or not ``model``; or the preset is not clear.
    """
    shapes = _shapes(state_dict)
    fitting = {
        name.partition(".")[0]: name
        for name in timm.list_models("iformer_*", module="presets", pretrained=True)
        if _shapes(timm.create_model(name, device="meta").state_dict()) == shapes
    }
    if not fitting:
        raise ValueError(f"{source}: its tensors fit none of the models that the authors released")
    names = " and ".join(fitting)
    if model:
        if model.partition(".")[0] not in fitting:
            raise ValueError(f"{source}: its tensors fit {names}, not {model}")
        return fitting[model.partition(".")[0]], "which was asked for"
    at_384 = [name for name in fitting if name.endswith("_384")]
    at_224 = [name for name in fitting if name not in at_384]
    grid = state_dict["stages.0.pos_embed"].shape[0]
    if grid == 384 // 4:
        return fitting[at_384[0]], f"because its position embeddings have the grid of 384 pixels, {grid}x{grid}"
    if "384" in source.stem:
        return fitting[at_384[0]], f"because the file is called {source.name}; its tensors fit {names}"
    if "224" in source.stem or at_224[0] in source.stem:
        return fitting[at_224[0]], f"because the file is called {source.name}; its tensors fit {names}"
    raise ValueError(f"{source}: its tensors fit both {names}, and its name does not say which; name one with --model")


def _shapes(state_dict: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's tensors; for position embeddings only the channels, as their grid is resized."""
    shapes = {key: tuple(value.shape) for key, value in state_dict.items()}
    return {key: shape[-1:] if key.endswith("pos_embed") else shape for key, shape in shapes.items()}
