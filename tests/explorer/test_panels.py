"""What the explorer's panels show, without a browser."""

import base64
import csv
import io
import json
import re
import shlex
from contextlib import closing
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.main import get_command

from iformer.explorer import ramp
from iformer.explorer.branches import ALL_HEADS, Branches, attention_at
from iformer.explorer.classify import Classify
from iformer.explorer.frequencies import HIGH, LOW, Frequencies
from iformer.explorer.ramp import Ramp
from iformer.explorer.scenes import Scenes
from iformer.explorer.workbench import Workbench
from iformer.frequency.measurement import measure
from iformer.frequency.sensitivity import CUT_OFFS
from iformer.models import saved
from iformer.paper.complexity import build, count
from iformer_command import cli
from tests.conftest import Command
from tests.explorer.conftest import CLASSES, Folders
from tests.networks import small


class Passes:
    """Counts the passes of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.count = 0
        self.handle = network.register_forward_pre_hook(self)

    def __call__(self, *_: Any) -> None:
        self.count += 1


def images(html: str) -> list[Image.Image]:
    """The pictures in HTML."""
    found = re.findall(r'src="data:image/(?:png|jpeg);base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in found]


def linked(name: str, html: str) -> bytes:
    """The content of a file that HTML offers to save."""
    (found,) = re.findall(rf'download="{name}" href="data:[^,]+;base64,([^"]+)"', html)
    return base64.b64decode(found)


def values(html: str) -> list[float]:
    """The percentages of bars in HTML."""
    return [float(each) for each in re.findall(r"([\d.]+)&thinsp;%", html)]


def code(same: str) -> list[str]:
    """The commands and programs that make the same."""
    return [unescape(each) for each in re.findall(r"<code>(.*?)</code>", same, re.DOTALL)]


def varied(image: Image.Image) -> bool:
    return bool(np.asarray(image.convert("RGB")).std() > 2)


def test_classes_are_those_of_predict(bench: Workbench, folders: Folders, iformer: Command) -> None:
    view = Classify(bench).view(folders.photo, [folders.colour], None, 0.5)
    _, out, _ = iformer("predict", folders.photo, "--model", folders.colour, "--top", 4, "--json")
    classes = json.loads(out)[0]["classes"]
    assert values(view.html) == pytest.approx([100 * each["probability"] for each in classes], abs=0.1)
    assert "cat &lt;b&gt;" in view.html
    assert "cat <b>" not in view.html
    (picture,) = images(view.html)
    assert varied(picture)
    assert min(picture.size) >= 224


@pytest.mark.parametrize("which", ["colour", "grey"])
def test_a_clicked_class_is_explained_and_the_slider_only_redraws(
    which: str, bench: Workbench, folders: Folders
) -> None:
    name = getattr(folders, which)
    panel = Classify(bench)
    passes = Passes(bench.models[name].network)
    first = panel.view(folders.photo, [name], None, 0.5)
    assert passes.count > 0
    best = int(panel.answer(name, bench.picture(folders.photo)).probabilities.argmax())
    other = panel.view(folders.photo, [name], panel.choice(name, (best + 1) % 4), 0.5)
    assert other.html != first.html
    assert f"--target {shlex.quote(CLASSES[(best + 1) % 4])}" in code(other.same)[1]
    before = passes.count
    stronger = panel.view(folders.photo, [name], None, 1.0)
    plain = panel.view(folders.photo, [name], None, 0.0)
    assert passes.count == before
    passes.handle.remove()
    first_picture, strong, bare = (images(view.html)[0] for view in (first, stronger, plain))
    assert first_picture != strong
    assert np.asarray(bare).std(2).max() < 2 if which == "grey" else True  # nothing is laid over a greyscale picture


def test_two_models_stand_side_by_side(bench: Workbench, folders: Folders) -> None:
    panel = Classify(bench)
    view = panel.view(folders.photo, [folders.colour, folders.grey], panel.choice(folders.grey, 3), 0.4)
    assert len(images(view.html)) == 2
    assert view.html.count("ex-bar ex-chosen") == 2  # the class that was clicked in one is explained in both
    assert len(values(view.html)) == 8


def test_all_frequencies_are_the_picture_and_none_is_its_mean(bench: Workbench, folders: Folders) -> None:
    panel, picture = Frequencies(bench), bench.picture(folders.photo)
    whole = panel.filtered(folders.colour, picture, LOW, CUT_OFFS[-1])
    assert whole.probabilities is not None
    answer = Classify(bench).answer(folders.colour, picture)
    np.testing.assert_allclose(whole.probabilities, answer.probabilities, atol=1e-5)
    assert np.abs(np.asarray(whole.seen).astype(int) - np.asarray(answer.seen)).max() <= 1
    none = panel.filtered(folders.colour, picture, LOW, 0)
    assert np.ptp(np.asarray(none.seen), axis=(0, 1)).max() == 0
    frequency = none.spectrum.width // 32  # pixels of the picture for each
    places = np.argwhere((np.asarray(none.spectrum) != none.spectrum.getpixel((0, 0))).any(2)) // frequency
    assert {(16, 16)} == {(int(row), int(column)) for row, column in places}
    edges = panel.filtered(folders.colour, picture, HIGH, 0.5).spectrum
    assert edges.getpixel((16 * frequency, 16 * frequency)) == none.spectrum.getpixel((0, 0))  # the mean is gone
    assert edges.getpixel((0, 0)) != none.spectrum.getpixel((0, 0))


def test_dragging_the_cut_off_changes_what_is_shown(bench: Workbench, folders: Folders) -> None:
    panel = Frequencies(bench)
    near, far = (panel.view(folders.photo, folders.colour, LOW, at).html for at in (0.05, 0.8))
    assert values(near) != values(far)
    assert images(near)[0] != images(far)[0]
    assert all(varied(picture) for picture in images(far))
    passes = Passes(bench.models[folders.colour].network)
    again = panel.view(folders.photo, folders.colour, LOW, 0.8).html
    passes.handle.remove()
    assert (again, passes.count) == (far, 0)


def test_the_curve_goes_through_what_the_slider_shows(bench: Workbench, folders: Folders) -> None:
    panel, picture = Frequencies(bench), bench.picture(folders.photo)
    curve = panel.curve(folders.colour, picture)
    place = CUT_OFFS.index(1 / 2)
    for kind in (LOW, HIGH):
        shown = panel.filtered(folders.colour, picture, kind, 1 / 2).probabilities
        np.testing.assert_allclose(curve[kind][place], shown, atol=1e-5)
    html = panel.curve_view(folders.photo, folders.colour, HIGH, 0.3)
    assert "<polyline" in html
    rows = list(csv.reader(linked("curve.csv", html).decode().splitlines()))
    assert [float(row[0]) for row in rows[1:]] == list(CUT_OFFS)
    best = CLASSES.index(rows[0][1])
    np.testing.assert_allclose([float(row[1]) / 100 for row in rows[1:]], curve[HIGH][:, best], atol=1e-6)


def test_measured_accuracy_stands_beside_the_curve(
    bench: Workbench, folders: Folders, tmp_path: Path, iformer: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = Image.open(folders.photo)
    for name in ("ant", "bee"):
        (tmp_path / "labelled" / name).mkdir(parents=True)
        photo.save(tmp_path / "labelled" / name / "a.png")
    output = tmp_path / "analysis"
    panel = Frequencies(bench)
    monkeypatch.setattr(bench, "analysis", output)
    html = panel.curve_view(folders.photo, folders.colour, LOW, 0.3)
    assert html.count("<polyline") == 1
    assert "iformer analyze" in html
    arguments = ["--model", folders.colour, "--frequencies", 2, "--cams", 0, "--output", output]
    assert iformer("analyze", "--labelled", tmp_path / "labelled", *arguments)[0] == 0
    html = panel.curve_view(folders.photo, folders.colour, LOW, 0.3)
    assert html.count("<polyline") == 2
    assert "accuracy on 2 images" in html
    assert panel.curve_view(folders.photo, folders.grey, LOW, 0.3).count("<polyline") == 1  # another model's


def test_branches_are_those_that_are_measured(bench: Workbench, folders: Folders) -> None:
    panel, picture = Branches(bench), bench.picture(folders.photo)
    _, blocks = panel.seen(folders.colour, picture)
    model = bench.models[folders.colour]
    shares = {
        (layer.stage, layer.block, layer.branch, layer.point): found.high_frequency_shares.item()
        for layer, found in measure(model.network, [bench.inputs(folders.colour, picture)]).branches.items()
    }
    compared = 0
    for block in blocks:
        for (branch, point), maps in block.maps.items():
            assert maps.share == pytest.approx(shares[block.stage, block.number, branch, point], nan_ok=True)
            compared += 1
    assert compared == 2 * (3 + 2 + 2 + 3)  # the blocks in the middle have no attention
    view = panel.view(folders.photo, folders.colour, 0)
    assert "max-pooling" in view.html
    assert "attention" in view.html
    assert "High frequencies" in view.html
    assert any(varied(each) for each in images(view.html))
    assert view.html != panel.view(folders.photo, folders.colour, 1).html


def test_a_block_is_chosen_in_a_drawing_of_the_ramp(bench: Workbench, folders: Folders) -> None:
    drawing = Branches(bench).drawing(folders.colour, 2)
    assert re.findall(r'data-pick="(\d)"', drawing) == ["0", "1", "2", "3"]
    assert re.search(r'ex-chosen" data-pick="2"', drawing)
    assert "50 % attention" in drawing


def test_attention_of_a_place_is_what_the_network_computes(bench: Workbench, folders: Folders) -> None:
    panel, picture = Branches(bench), bench.picture(folders.photo)
    _, blocks = panel.seen(folders.colour, picture)
    branch: Any = bench.models[folders.colour].network.stages[0].blocks[0].mixer.attn_branch
    seen: list[torch.Tensor] = []
    handle = branch.qkv.register_forward_hook(lambda *arguments: seen.append(arguments[2]))
    with torch.inference_mode():
        bench.models[folders.colour].network(bench.inputs(folders.colour, picture))
    handle.remove()
    (qkv,) = seen
    _, h, w, c = qkv.shape
    q, k, _ = qkv[0].reshape(h * w, 3, c // 3).unbind(1)  # this branch has one head
    expected = (q @ k.T / (c // 3) ** 0.5).softmax(-1)[(h - 1) * w].reshape(h, w)
    found = attention_at(blocks[0], (0.01, 0.99), ALL_HEADS)  # the lower left corner
    np.testing.assert_allclose(found, expected.numpy(), rtol=0.01)
    html = panel.attention_view(folders.photo, folders.colour, 0, (0.01, 0.99), ALL_HEADS, 0.6)
    assert f"{found.max() * found.size:.1f} times" in html
    other = panel.attention_view(folders.photo, folders.colour, 0, (0.9, 0.1), "head 1", 0.6)
    assert html != other
    assert "no attention" in panel.attention_view(folders.photo, folders.colour, 1, (0.5, 0.5), ALL_HEADS, 0.6)


@pytest.mark.parametrize("name", ["iformer_small", "iformer_nano"])
def test_costs_of_a_ramp_are_counted(name: str, bench: Workbench) -> None:
    panel = Ramp(bench)
    heads = list(ramp.own(name))
    heads[-1] -= 1
    cost = panel.cost(name, tuple(heads))
    network: Any = build(name, attention_heads=tuple(heads))
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert cost.multiply_adds == count(network, network.pretrained_cfg["input_size"]).multiply_adds()
    view = panel.view(name, heads)
    assert f"Changed from {name}" in view.html
    assert json.loads(linked("ramp.json", view.html))["attention_heads"] == heads
    assert panel.sliders(name, heads).count("<input") == len(heads)
    exec(compile(code(view.same)[1], name, "exec"), names := {})
    assert [h for stage in names["model"].attention_heads for h in stage] == heads  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["iformer_nano", "iformer_large", "iformer_small_ramp_down"])
def test_the_recipe_line_trains_the_ramp(name: str, iformer: Command, tmp_path: Path) -> None:
    line = ramp.recipe(name, ramp.own(name))
    status, out, err = iformer(*shlex.split(line.replace("FOLDER", str(tmp_path)))[1:], "--print_config")
    assert status == 0, err
    assert f"model: {name}" in out
    shown = re.search(r"attention_heads:\n((?: +- \d+\n)+)", out)
    assert shown
    assert tuple(map(int, re.findall(r"\d+", shown[1]))) == ramp.own(name)


def test_ramps_that_a_search_has_found_can_be_begun_with(tmp_path: Path, folders: Folders) -> None:
    own, best = list(ramp.own("iformer_nano")), [0, 1, 6, 6, 6]
    front = [{"attention_heads": heads, "validation_accuracy": 0.5} for heads in (own, best)]
    for model, ramps in (("iformer_nano", 2), ("resnet18", 0), ("iformer_small", 0)):  # 5 blocks are not iformer_small
        (tmp_path / "search.json").write_text(json.dumps({"model": model, "front": front}))
        assert len(ramp.found(tmp_path)) == ramps
        if ramps:
            with closing(Workbench([folders.colour], search=tmp_path)) as bench:
                assert Ramp(bench).beginnings["iformer_nano, found 2"] == ("iformer_nano", tuple(best))
    (tmp_path / "search.json").write_text("{")
    assert ramp.found(tmp_path) == {}


def test_latency_is_measured_on_request(bench: Workbench) -> None:
    heads = [0, *ramp.own("iformer_nano")[1:]]
    html = Ramp(bench).latency_view("iformer_nano", heads)
    assert float(re.search(r"<b>([\d.]+)</b> ms", html)[1]) > 0  # type: ignore[index]


@pytest.mark.parametrize(("heads", "told"), [([9, 2, 4, 5, 5], "expected 0 to 2"), ([1, 2], "has 2 entries")])
def test_a_wrong_ramp_is_told(heads: list[int], told: str, bench: Workbench) -> None:
    with pytest.raises(ValueError, match=told):
        Ramp(bench).view("iformer_nano", heads)


def test_objects_are_those_of_predict(
    bench: Workbench, folders: Folders, iformer: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = Scenes(bench)
    passes = Passes(bench.whole(folders.detector).network)
    everything = panel.view(folders.photo, folders.detector, 0.0, 0.5)
    nothing = panel.view(folders.photo, folders.detector, 1.0, 0.5)
    passes.handle.remove()
    assert passes.count == 1  # the threshold only redraws
    assert images(everything.html)[0] != images(nothing.html)[0]
    assert "no objects" in nothing.html
    document = json.loads(linked("objects.json", everything.html))
    monkeypatch.chdir(tmp_path)
    _, out, _ = iformer("predict", folders.photo, "--model", folders.detector, "--json")
    expected = json.loads(out)
    assert document["categories"] == expected["categories"]
    assert [each["bbox"] for each in document["annotations"]] == [each["bbox"] for each in expected["annotations"]]


def test_regions_are_those_of_predict(
    bench: Workbench, folders: Folders, iformer: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = Scenes(bench)
    view = panel.view(folders.photo, folders.segmenter, 0.5, 0.5)
    monkeypatch.chdir(tmp_path)
    _, out, _ = iformer("predict", folders.photo, "--model", folders.segmenter, "--json")
    (expected,) = json.loads(out)
    label_map = Image.open(io.BytesIO(linked("labels.png", view.html)))
    assert label_map.mode == "P"
    np.testing.assert_array_equal(np.asarray(label_map), np.asarray(Image.open(expected["labels"])))
    assert values(view.html) == pytest.approx([100 * each["share"] for each in expected["classes"]], abs=0.1)
    opaque = images(panel.view(folders.photo, folders.segmenter, 0.5, 1.0).html)[0]
    assert images(view.html)[0] != opaque


def test_the_backbones_of_detectors_and_segmenters_have_branches_and_frequencies(
    bench: Workbench, folders: Folders
) -> None:
    for name in (folders.detector, folders.segmenter):
        assert "Stage 1, block 1" in Branches(bench).view(folders.photo, name, 0).html
        assert len(images(Frequencies(bench).view(folders.photo, name, LOW, 0.3).html)) == 2


def test_wrong_models_are_told(bench: Workbench, folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a detector"):
        Classify(bench).view(folders.photo, [folders.detector], None, 0.5)
    with pytest.raises(ValueError, match="is a classifier"):
        Scenes(bench).view(folders.photo, folders.colour, 0.5, 0.5)
    saved.save(small("resnet10t"), tmp_path, list("abcde"))
    with closing(Workbench([str(tmp_path)])) as other, pytest.raises(ValueError, match="no Inception mixers"):
        Branches(other).view(folders.photo, str(tmp_path), 0)


def test_a_picture_too_long_for_a_detectors_backbone_is_told(
    bench: Workbench, folders: Folders, tmp_path: Path
) -> None:
    Image.effect_noise((1200, 30), 60).save(tmp_path / "long.png")
    with pytest.raises(ValueError, match="expected at least 32"):
        Branches(bench).view(str(tmp_path / "long.png"), folders.detector, 0)


def test_programs_and_commands_make_the_same(
    bench: Workbench, folders: Folders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(folders.photo).parent)
    programs = [
        *code(Frequencies(bench).view(folders.photo, folders.colour, HIGH, 0.25).same),
        *code(Branches(bench).view(folders.photo, folders.colour, 0).same)[1:],
    ]
    for program in programs:
        exec(compile(program, "program", "exec"), {})
    out = capsys.readouterr().out
    found = Frequencies(bench).filtered(folders.colour, bench.picture(folders.photo), HIGH, 0.25).probabilities
    assert found is not None
    assert any(float(number) == pytest.approx(found.max(), abs=1e-3) for number in re.findall(r"\d\.\d+", out))
    assert "max-pooling input" in out
    commands = [
        *code(Classify(bench).view(folders.photo, [folders.colour], None, 0.5).same),
        *code(Branches(bench).view(folders.photo, folders.colour, 0).same)[:1],
        *code(Scenes(bench).view(folders.photo, folders.detector, 0.3, 0.5).same),
        *code(Scenes(bench).view(folders.photo, folders.segmenter, 0.3, 0.5).same),
    ]
    for line in commands:
        words = shlex.split(line)
        get_command(cli.app).commands[words[1]].make_context(words[1], words[2:])  # type: ignore[attr-defined]
