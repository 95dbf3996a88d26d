import pytest

from iformer.paper import figure_1c


def test_figure_shows_every_family_and_is_wide_as_a_page(tmp_path):
    figure_1c.draw(tmp_path / "figure.png")
    header = (tmp_path / "figure.png").read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    assert int.from_bytes(header[16:20]) == 1650  # 5.5 inches of 300 dots
    figure_1c.draw(tmp_path / "figure.svg")
    svg = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    for text in ("Parameters (M)", "Multiply-adds (G)", "ImageNet-1K top-1 (%)", "CNN", "Swin", "UniFormer", "BoTNet"):
        assert f">{text}</text>" in svg


def test_figure_in_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="xyz"):
        figure_1c.draw(tmp_path / "figure.xyz")
