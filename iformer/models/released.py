"""The authors' released checkpoints: the only file that knows their key names.

Source of the format: the release at https://github.com/sail-sg/iFormer, a raw state dict saved by ``torch.save``.
"""

import pickle
import re
from pathlib import Path

from timm.models import load_state_dict
from torch import Tensor, nn

from iformer.models.inception_transformer import resize_pos_embed

# Released name -> ours, applied in order. The released blocks of stage N are blocksN, its position embedding
# pos_embedN, and the downsampling before it patch_embedN (the stem has no number).
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


def is_official(state_dict: dict[str, Tensor]) -> bool:
    """Whether the keys are those of the authors' release."""
    return "patch_embed.proj1.weight" in state_dict


def rename(key: str) -> str:
    """Our name of a parameter or buffer of the released model."""
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    # The release counts stages from 1.
    return re.sub(r"^stages\.(\d)", lambda match: f"stages.{int(match[1]) - 1}", key)


def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the release -> state dict of :class:`~iformer.models.inception_transformer.InceptionTransformer`.

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
    """timm's hook for pretrained weights: accept released or our own keys, resize position embeddings to the model's.

    The classifier, and the input channels of the first convolution, are left to timm, which adapts them.

    Raises:
        ValueError: The checkpoint is of another architecture; names a key.
    """
    state_dict = without_trainer(state_dict)
    if is_official(state_dict):
        state_dict = convert(state_dict)
    expected = {key: value.shape for key, value in model.state_dict().items() if not key.startswith("head.")}
    adapted = {}
    for key, value in state_dict.items():
        if key.endswith(".pos_embed") and key in expected and value.ndim == 3:
            value = resize_pos_embed(value, list(expected[key][:2]))
        adapted[key] = value

    refusal = "not a checkpoint of this model:"
    missing = [key for key in expected if key not in adapted]
    if missing:
        raise ValueError(f"{refusal} it lacks {len(missing)} of its tensors, {missing[0]} first")
    surplus = [key for key in adapted if key not in expected and not key.startswith("head.")]
    if surplus:
        raise ValueError(f"{refusal} it holds {len(surplus)} tensors that the model has not, {surplus[0]} first")
    for key, shape in expected.items():
        if adapted[key].shape != shape and key != "stem.conv1.weight":
            raise ValueError(f"{refusal} its {key} is {tuple(adapted[key].shape)}, the model's {tuple(shape)}")
    return adapted


def without_trainer(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network alone, if this is the state of a LightningModule that calls it ``model``."""
    inner = {key.removeprefix("model."): value for key, value in state_dict.items() if key.startswith("model.")}
    return inner or state_dict


def load(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a ``.pth``, ``.ckpt`` or ``.safetensors`` file without ever running code from it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no checkpoint, or holds more than tensors and plain containers.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: {'a folder, expected a file' if Path(path).is_dir() else 'no such file'}")
    try:
        state_dict = load_state_dict(str(path))
    except OSError:
        raise
    except Exception as error:  # of any kind: the file's bytes decide where its reader fails
        cause = error.__cause__
        if not isinstance(cause, pickle.UnpicklingError):
            reason = f"not a readable checkpoint ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        elif "global" in str(cause).lower():
            reason = "refused, it is not a plain file of tensors (loading it could run foreign code)"
        else:
            reason = "not a readable checkpoint"
        raise ValueError(f"{path}: {reason}") from error
    if not state_dict:
        raise ValueError(f"{path}: not a state dict, it is empty")
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: not a state dict, {key!r} is of type {type(value).__name__}, expected a tensor")
    return without_trainer(state_dict)
