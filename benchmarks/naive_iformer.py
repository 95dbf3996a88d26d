"""A naive iFormer, written without regard to speed or memory, as a baseline of the benchmarks.

It runs eagerly, uses contiguous NCHW maps in the mixer, copies at each split of channels, builds the attention matrix,
and runs every residual, scale and activation as a separate operation. Its parameters have the names of the authors'
release, so that :func:`iformer.models.released.convert` puts the same weights into our model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iformer.models.presets import PRESETS


class HighMixer(nn.Module):
    """The high-frequency mixer from ``(N, C_h, H, W)`` to ``(N, 2 C_h, H, W)``: half convolution, half max-pooling."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.half = half
        self.conv1 = nn.Conv2d(half, 2 * half, 1, bias=False)
        self.proj1 = nn.Conv2d(2 * half, 2 * half, 3, padding=1, groups=2 * half, bias=False)
        self.act1 = nn.GELU()
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.proj2 = nn.Conv2d(half, 2 * half, 1)
        self.act2 = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of both branches, concatenated."""
        convolved = self.act1(self.proj1(self.conv1(x[:, : self.half].contiguous())))
        pooled = self.act2(self.proj2(self.pool(x[:, self.half :].contiguous())))
        return torch.cat([convolved, pooled], dim=1)


class LowMixer(nn.Module):
    """The low-frequency mixer on maps ``(N, C_l, H, W)``: self-attention, at half the size in stages 1 and 2."""

    def __init__(self, dim: int, num_heads: int, pool_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.pool = nn.AvgPool2d(pool_size) if pool_size > 1 else nn.Identity()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.upsample = nn.Upsample(scale_factor=pool_size) if pool_size > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Apply softmax attention, building its matrix."""
        x = self.pool(x)
        n, c, h, w = x.shape
        qkv = self.qkv(x.flatten(2).transpose(1, 2))
        q, k, v = qkv.reshape(n, h * w, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        x = (attention @ v).transpose(2, 3).reshape(n, c, h, w)
        return self.upsample(x)


class Mixer(nn.Module):
    """The Inception mixer on maps ``(N, H, W, C)``."""

    def __init__(self, dim: int, num_heads: int, attention_heads: int, pool_size: int) -> None:
        super().__init__()
        low = attention_heads * dim // num_heads
        self.high = dim - low
        self.high_mixer = HighMixer(self.high)
        self.low_mixer = LowMixer(low, attention_heads, pool_size)
        fused = 2 * self.high + low
        self.conv_fuse = nn.Conv2d(fused, fused, 3, padding=1, groups=fused, bias=False)
        self.proj = nn.Conv2d(fused, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Split the channels, mix each part, and fuse the parts."""
        x = x.permute(0, 3, 1, 2)
        high = self.high_mixer(x[:, : self.high].contiguous())
        low = self.low_mixer(x[:, self.high :].contiguous())
        x = torch.cat([high, low], dim=1)
        x = x + self.conv_fuse(x)
        return self.proj(x).permute(0, 2, 3, 1).contiguous()


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers to features ``(..., C)``."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Mixer and MLP with pre-norm residuals, on maps ``(N, H, W, C)``."""

    def __init__(self, dim: int, num_heads: int, attention_heads: int, pool_size: int, scaled: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Mixer(dim, num_heads, attention_heads, pool_size)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)
        self.layer_scale_1 = nn.Parameter(1e-6 * torch.ones(dim)) if scaled else None
        self.layer_scale_2 = nn.Parameter(1e-6 * torch.ones(dim)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block without stochastic depth, whose cost is negligible in both models."""
        mixed = self.attn(self.norm1(x))
        x = x + (mixed if self.layer_scale_1 is None else self.layer_scale_1 * mixed)
        mapped = self.mlp(self.norm2(x))
        return x + (mapped if self.layer_scale_2 is None else self.layer_scale_2 * mapped)


class Stem(nn.Module):
    """The stem, two convolutions of stride 2."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(3, dim // 2, 3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.proj2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps ``(N, H / 4, W / 4, C)`` for images ``(N, 3, H, W)``."""
        x = F.gelu(self.norm1(self.proj1(x)))
        return self.norm2(self.proj2(x)).permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """The downsampling between stages, a convolution of stride 2."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return maps ``(N, H / 2, W / 2, C')`` for maps ``(N, H, W, C)``."""
        return self.norm(self.proj(x.permute(0, 3, 1, 2).contiguous())).permute(0, 2, 3, 1)


class NaiveIFormer(nn.Module):
    """The naive iFormer, from images ``(N, 3, H, W)`` to logits ``(N, 1000)``.

    Args:
        preset: The preset, one of iformer_small, iformer_base and iformer_large.
        img_size: The height and width of the images in pixels, a multiple of 32 whose eighth is even.
    """

    def __init__(self, preset: str = "iformer_small", img_size: int = 224) -> None:
        super().__init__()
        config = PRESETS[preset]
        dims, ramp = config["dims"], iter(config["attention_heads"])
        self.patch_embed = Stem(dims[0])
        for stage, (depth, dim, num_heads) in enumerate(
            zip(config["depths"], dims, config["num_heads"], strict=True), 1
        ):
            if stage > 1:
                setattr(self, f"patch_embed{stage}", Downsample(dims[stage - 2], dim))
            side = img_size // 2 ** (stage + 1)
            setattr(self, f"pos_embed{stage}", nn.Parameter(0.02 * torch.randn(1, side, side, dim)))
            pool_size = 2 if stage <= 2 else 1
            blocks = [Block(dim, num_heads, next(ramp), pool_size, scaled=stage > 2) for _ in range(depth)]
            setattr(self, f"blocks{stage}", nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head = nn.Linear(dims[-1], 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the stages, average over the positions, and classify."""
        x = self.patch_embed(x)
        for stage in range(1, 5):
            if stage > 1:
                x = getattr(self, f"patch_embed{stage}")(x)
            x = getattr(self, f"blocks{stage}")(x + getattr(self, f"pos_embed{stage}"))
        return self.head(self.norm(x).mean(dim=(1, 2)))
