"""The tabs of the explorer's page: which components each panel has, and which function fills them."""

from typing import Any

import gradio as gr

from iformer.explorer import html, ramp
from iformer.explorer.branches import ALL_HEADS, Branches
from iformer.explorer.classify import Choice, Classify
from iformer.explorer.frame import LOUD, QUIET, Frame, part, same, told
from iformer.explorer.frequencies import HIGH, LOW, Frequencies
from iformer.explorer.ramp import Ramp
from iformer.explorer.scenes import Scenes

ALONE = "none"
"""The choice of no second model."""

CENTRE = (0.5, 0.5)


def classify(frame: Frame, blocks: gr.Blocks) -> None:
    """Add the panel Classify."""
    panel = Classify(frame.bench)

    def show(file: str | None, name: str, beside: str, strength: float, chosen: Choice | None = None) -> Any:
        view = panel.view(file, [name] if beside == ALONE else [name, beside], chosen, strength)
        return view.html, view.same, chosen

    def pick(event: gr.EventData, file: str | None, name: str, beside: str, strength: float) -> Any:
        column, _, index = event.value.partition("|")
        return show(file, name, beside, strength, panel.choice([name, beside][int(column)], int(index)))

    with gr.Tab("Classify", id="classify") as tab:
        with gr.Row():
            strength = gr.Slider(
                0, 1, 0.5, step=0.05, label="Grad-CAM over the picture", elem_id="ex-strength", scale=2, min_width=240
            )
            beside = gr.Dropdown(
                [ALONE, *frame.bench.names],
                value=ALONE,
                label="Side by side with",
                visible=len(frame.bench.names) > 1,
                elem_id="ex-beside",
                filterable=False,
                scale=1,
                min_width=200,
            )
        view, chosen = part("ex-classify"), gr.State(None)
        outputs = [view, same(), chosen]
    inputs = [frame.picture, frame.model, beside, strength]
    frame.show(tab, "classify", told(show, "", None), inputs, outputs)
    if frame.first == "classify":
        blocks.load(told(show, "", None), inputs, outputs, show_progress_on=view, **LOUD)
    beside.input(told(show, "", None), [*inputs, chosen], outputs, show_progress_on=view, **LOUD)
    view.pick(told(pick, "", None), inputs, outputs, **QUIET)
    strength.input(told(show, "", None), [*inputs, chosen], outputs, **QUIET)


def frequency(frame: Frame, blocks: gr.Blocks) -> None:
    """Add the panel Frequencies."""
    panel = Frequencies(frame.bench)

    def show(file: str | None, name: str, kind: str, cut_off: float) -> Any:
        view = panel.view(file, name, kind, cut_off)
        return view.html, view.same

    def curve(current: str, file: str | None, name: str, kind: str, cut_off: float) -> Any:
        if current != "frequencies":
            return gr.skip()
        if frame.bench.whole(name).task != "classification":
            return ""
        return panel.curve_view(file, name, kind, cut_off)

    with gr.Tab("Frequencies", id="frequencies") as tab:
        with gr.Row():
            kind = gr.Radio([LOW, HIGH], value=LOW, label="Keep", elem_id="ex-kind", scale=1, min_width=290)
            cut_off = gr.Slider(
                0, 1.41, 0.25, step=0.01, label="Cut-off in π", elem_id="ex-cut-off", scale=3, min_width=260
            )
        view, drawn = part("ex-frequencies"), gr.HTML(elem_id="ex-curve", apply_default_css=False)
        outputs = [view, same()]
    inputs = [frame.picture, frame.model, kind, cut_off]
    settled = frame.show(tab, "frequencies", told(show, ""), inputs, outputs)
    for moved in (kind.input, cut_off.input):
        settled.append(moved(told(show, ""), inputs, outputs, **QUIET))
    for event in settled:
        event.then(told(curve), [frame.current, *inputs], drawn, **QUIET)


def branch(frame: Frame, blocks: gr.Blocks) -> None:
    """Add the panel Branches."""
    panel = Branches(frame.bench)

    def show(file: str | None, name: str, block: int, place: Any, head: str, strength: float) -> Any:
        view = panel.view(file, name, block)
        heads = panel.heads(name, block)
        head = head if head in heads else ALL_HEADS
        attended = panel.attention_view(file, name, block, place, head, strength)
        return view.html, view.same, panel.drawing(name, block), gr.update(choices=heads, value=head), attended, block

    def pick(event: gr.EventData, file: str | None, name: str, _: int, *seen: Any) -> Any:
        return show(file, name, int(event.value), *seen)

    def attend(file: str | None, name: str, block: int, place: Any, head: str, strength: float) -> Any:
        return panel.attention_view(file, name, block, place, head, strength), place

    def click(event: gr.EventData, file: str | None, name: str, block: int, _: Any, *seen: Any) -> Any:
        return attend(file, name, block, (float(event.x), float(event.y)), *seen)

    with gr.Tab("Branches", id="branches") as tab:
        block, place = gr.State(0), gr.State(CENTRE)
        drawing = part("ex-drawing")
        view = part("ex-branches")
        with gr.Row(elem_id="ex-attention"):
            with gr.Column(scale=1, min_width=220):
                gr.HTML(html.render("attention_title"), apply_default_css=False)
                head = gr.Dropdown([ALL_HEADS], value=ALL_HEADS, label="Head", filterable=False)
                strength = gr.Slider(0, 1, 0.5, step=0.05, label="Opacity")
            with gr.Column(scale=2, min_width=260):
                attended = part("ex-attended")
        rest = same()
    inputs = [frame.picture, frame.model, block, place, head, strength]
    outputs = [view, rest, drawing, head, attended, block]
    blank = ("", "", gr.skip(), "", gr.skip())
    frame.show(tab, "branches", told(show, *blank), inputs, outputs)
    drawing.pick(told(pick, *blank), inputs, outputs, **QUIET)
    attended.place(told(click, gr.skip()), inputs, [attended, place], **QUIET)
    for moved in (head.input, strength.input):
        moved(told(attend, gr.skip()), inputs, [attended, place], **QUIET)


def ramps(frame: Frame, blocks: gr.Blocks) -> None:
    """Add the panel Ramp."""
    panel = Ramp(frame.bench)

    def start(name: str) -> Any:
        preset, heads = panel.beginnings[name]
        return (*show(name, list(heads)), panel.sliders(preset, heads))

    def show(name: str, heads: list[int]) -> Any:
        view = panel.view(panel.beginnings[name][0], heads)
        return view.html, view.same, heads, ""

    def slide(event: gr.EventData, name: str) -> Any:
        return show(name, [int(value) for value in event.value])

    def measure(name: str, heads: list[int]) -> Any:
        return panel.latency_view(panel.beginnings[name][0], heads)

    names = list(panel.beginnings)
    with gr.Tab("Ramp", id="ramp") as tab:
        name = gr.Dropdown(names, value=names[0], label="Begin with", elem_id="ex-preset", filterable=False)
        sliders, heads = part("ex-sliders"), gr.State(list(ramp.own(names[0])))
        costs = gr.HTML(elem_id="ex-costs", apply_default_css=False)
        asked = gr.Button("Measure latency", elem_id="ex-measure", size="sm")
        latency = gr.HTML(elem_id="ex-latency", apply_default_css=False)
        outputs = [costs, same(), heads, latency]
    blank = ("", gr.skip(), "")
    tab.select(lambda: "ramp", outputs=frame.current, **QUIET)
    blocks.load(told(start, *blank, ""), name, [*outputs, sliders], **QUIET)
    measuring = asked.click(told(measure), [name, heads], latency, **LOUD)
    name.input(told(start, *blank, ""), name, [*outputs, sliders], cancels=measuring, **QUIET)
    sliders.slide(told(slide, *blank), name, outputs, cancels=measuring, **QUIET)


def scenes(frame: Frame, blocks: gr.Blocks) -> None:
    """Add the panel Objects and regions."""
    panel = Scenes(frame.bench)

    def show(file: str | None, name: str, threshold: float, opacity: float) -> Any:
        view = panel.view(file, name, threshold, opacity)
        detects = frame.bench.whole(name).task == "detection"
        return view.html, view.same, gr.update(visible=detects), gr.update(visible=not detects)

    with gr.Tab("Objects and regions", id="scenes") as tab:
        threshold = gr.Slider(0, 1, 0.5, step=0.05, label="Lowest score", elem_id="ex-threshold", visible=False)
        opacity = gr.Slider(0, 1, 0.5, step=0.05, label="Classes over the picture", elem_id="ex-opacity", visible=False)
        view = part("ex-scenes")
        outputs = [view, same(), threshold, opacity]
    inputs = [frame.picture, frame.model, threshold, opacity]
    hidden = gr.update(visible=False)
    frame.show(tab, "scenes", told(show, "", hidden, hidden), inputs, outputs)
    if frame.first == "scenes":
        blocks.load(told(show, "", hidden, hidden), inputs, outputs, show_progress_on=view, **LOUD)
    for moved in (threshold.input, opacity.input):
        moved(told(show, "", hidden, hidden), inputs, outputs, **QUIET)


ALL = (classify, frequency, branch, ramps, scenes)
"""The tabs in their order."""
