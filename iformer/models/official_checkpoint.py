"""The authors' released checkpoints: the only file that knows their key names.

Source of the format: the release at https://github.com/sail-sg/iFormer, a raw state dict saved by ``torch.save``.
"""

import pickle
import re
from pathlib import Path

from safetensors import SafetensorError
from timm.layers import resample_abs_pos_embed_nhwc
from timm.models import load_state_dict
from torch import Tensor, nn

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

    The released 1x1 convolutions become the linear layers that the paper calls FC.
    """
    converted = {}
    for key, value in state_dict.items():
        if value.ndim == 4 and value.shape[2:] == (1, 1):
            value = value[:, :, 0, 0]
        converted[rename(key)] = value
    return converted


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """timm's hook for pretrained weights: accept released or our own keys, resize position embeddings to the model's.

    Raises:
        ValueError: The checkpoint is of another architecture, or a tensor does not fit the model; names the key.
    """
    if is_official(state_dict):
        state_dict = convert(state_dict)
    adapted = {}
    expected = model.state_dict()
    for key, value in state_dict.items():
        if key.endswith("pos_embed") and key in expected and value.shape != expected[key].shape:
            if value.ndim != 4 or value.shape[-1] != expected[key].shape[-1]:
                raise ValueError(
                    f"{key} of the checkpoint is {tuple(value.shape)}, the model expects {tuple(expected[key].shape)}"
                )
            size = list(expected[key].shape[1:3])
            value = resample_abs_pos_embed_nhwc(value, size, interpolation="bilinear", antialias=False)
        adapted[key] = value
    missing = [key for key in expected if key not in adapted and not key.startswith("head.")]
    if missing:
        raise ValueError(f"not a checkpoint of this model: it lacks {len(missing)} of its tensors, {missing[0]} first")
    return adapted


def load(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a ``.pth`` or ``.safetensors`` file without ever running code from it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no checkpoint, or holds more than tensors and plain containers.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        state_dict = load_state_dict(str(path))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: refused, it holds more than tensors (loading it could run foreign code)") from error
    except (SafetensorError, RuntimeError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({str(error).splitlines()[0]})") from error
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path}: not a state dict, {key!r} is a {type(value).__name__} and not a tensor")
    return state_dict
