"""Figures of branches."""

import torch

from iformer.frequency.figures import branch_shares
from iformer.frequency.measurement import BranchInStage, Mean


def attention(share: float) -> BranchInStage:
    shares = {point: Mean(share, 0.01) for point in ("input", "operator", "output")}
    return BranchInStage(1, "attention", (8, 8), shares, Mean(0.0, 0.01), dict.fromkeys(shares, 0.0), torch.zeros(8, 8))


def test_all_models_shares_are_inside_their_panels() -> None:
    for shares in ((0.1, 0.6), (0.6, 0.1)):
        figure = branch_shares({str(share): [attention(share)] for share in shares})
        assert all(axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 60 for axes in figure.axes)
