import io
import json

from rich.console import Console

from iformer.models.presets import PRESETS
from iformer.paper import listing


def test_list_names_each_preset_with_its_cost_and_ramp(monkeypatch):
    chosen = {name: PRESETS[name] for name in ("iformer_small", "iformer_nano")}
    monkeypatch.setattr(listing, "PRESETS", chosen)
    small, nano = listing.presets()
    assert (small.name, small.image_size, small.parameters, small.multiply_adds) == (
        "iformer_small",
        224,
        19866344,
        4848476928,
    )
    assert small.ramp == "1/3 x3 | 3/6 x3 | 7/10 x4 9/10 x5 | 11/12 x3"
    assert (nano.name, nano.image_size) == ("iformer_nano", 32)
    assert json.loads(json.dumps(listing.document([small])))[0]["attention_heads"][2] == [7, 7, 7, 7, 9, 9, 9, 9, 9]
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(listing.render([small, nano]))
    assert small.ramp in console.export_text()
