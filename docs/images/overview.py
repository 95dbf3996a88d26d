"""Draws overview.svg, the picture of the README: the Inception mixer, and the frequency ramp of iFormer-S."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from iformer.models.presets import SMALL

CONV, POOL, ATTENTION, GREY = "#0072B2", "#56B4E9", "#E69F00", "#666666"


def box(axes: Axes, x: float, y: float, text: str, colour: str, width: float = 2.3) -> None:
    """A labelled box centred at (x, y)."""
    shape = FancyBboxPatch((x - width / 2, y - 0.3), width, 0.6, boxstyle="round,pad=0.04", color=colour, alpha=0.9)
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if colour in (CONV, GREY) else "black")


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """An arrow from start to end."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 1})


def draw_mixer(axes: Axes) -> None:
    """Section 3.2, Eqs. 1-4 and 7."""
    branches = (
        (0, CONV, ("FC", "3×3 depthwise conv", "GELU")),
        (3, POOL, ("3×3 max-pooling", "FC", "GELU")),
        (6, ATTENTION, ("average pooling", "self-attention", "upsampling")),
    )
    box(axes, 3, 6, "split the channels", GREY, width=8.3)
    for x, colour, layers in branches:
        arrow(axes, (x, 5.65), (x, 5.2))
        for i, layer in enumerate(layers):
            box(axes, x, 4.85 - 0.95 * i, layer, colour)
            if i:
                arrow(axes, (x, 5.5 - 0.95 * i), (x, 5.22 - 0.95 * i))
        arrow(axes, (x, 2.6), (x, 2.2))
    box(axes, 3, 1.85, "concatenate,  Y + 3×3 depthwise conv(Y),  FC", GREY, width=8.3)
    axes.text(1.5, 1.05, "high frequencies", ha="center", fontsize=9, color=CONV)
    axes.text(6, 1.05, "low frequencies", ha="center", fontsize=9, color="#B07A00")
    axes.set(xlim=(-1.4, 7.4), ylim=(0.8, 6.5), title="Inception mixer")
    axes.axis("off")


def draw_ramp(axes: Axes) -> None:
    """Section 3.3: the share of the channels that each branch takes, block by block."""
    heads = [total for total, depth in zip(SMALL["num_heads"], SMALL["depths"], strict=True) for _ in range(depth)]
    low = [attention / total for attention, total in zip(SMALL["attention_heads"], heads, strict=True)]
    half = [(1 - share) / 2 for share in low]
    blocks = range(1, len(low) + 1)
    axes.bar(blocks, low, color=ATTENTION, label="self-attention", width=0.85)
    axes.bar(blocks, half, bottom=low, color=POOL, label="max-pooling", width=0.85)
    upper = [a + b for a, b in zip(low, half, strict=True)]
    axes.bar(blocks, half, bottom=upper, color=CONV, label="convolution", width=0.85)
    start = 0
    for stage, depth in enumerate(SMALL["depths"], 1):
        axes.text(start + (depth + 1) / 2, 1.03, f"stage {stage}", ha="center", fontsize=8, color=GREY)
        start += depth
        if start < len(low):
            axes.axvline(start + 0.5, color="white", linewidth=3)
    axes.set(xlabel="block", ylabel="share of the channels", xticks=[1, 3, 6, 15, 18], ylim=(0, 1), xlim=(0.4, 18.6))
    axes.set_title("Frequency ramp of iFormer-S", pad=18)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False, fontsize=8)


def main() -> None:
    """Write overview.svg beside this file."""
    figure = Figure(figsize=(10, 3.9), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    draw_mixer(left)
    draw_ramp(right)
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
