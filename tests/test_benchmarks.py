"""The benchmarks compare what they say they compare."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from benchmarks import input_pipeline
from benchmarks.naive_iformer import NaiveIFormer
from iformer.models.released import convert, rename


def test_the_naive_model_computes_what_ours_does() -> None:
    torch.manual_seed(0)
    naive = NaiveIFormer("iformer_small", img_size=128)
    for name, parameter in naive.named_parameters():
        if "layer_scale" in name:
            nn.init.uniform_(parameter, 0.5, 1)  # at 1e-6 the branches would not be seen in the logits
    ours = timm.create_model("iformer_small", img_size=128)
    ours.load_state_dict(convert(naive.state_dict()))
    images = torch.randn(2, 3, 128, 128)
    for training in (False, True):
        logits = [model.train(training)(images) for model in (naive, ours)]
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)
        gradients = []
        for model, output in zip((naive, ours), logits, strict=True):
            model.zero_grad()
            output.square().sum().backward()
            gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        scale = max(gradient.norm() for gradient in gradients[0].values())
        for name, gradient in gradients[0].items():
            difference = gradient.flatten() - gradients[1][rename(name)].flatten()
            assert difference.norm() < 1e-4 * scale, name


def test_the_input_pipeline_accounts_for_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "result.json"
    input_pipeline.generate(tmp_path, 2, seed=0)
    arguments = ["input_pipeline", "--images", str(tmp_path), "--rounds", "1", "--output", str(output)]
    monkeypatch.setattr("sys.argv", arguments)
    threads = torch.get_num_threads()
    try:
        input_pipeline.main()
    finally:
        torch.set_num_threads(threads)
    result = json.loads(output.read_text())
    assert result["images"] == 2
    assert list(result["milliseconds_per_image"]) == ["read and decode", *input_pipeline.STEPS.values()]
