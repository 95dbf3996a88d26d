"""The explorer's page: the picture and the models on its left, and the panels beside them, arranged with Gradio."""

from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from iformer.explorer import html, tabs
from iformer.explorer.frame import Frame
from iformer.explorer.workbench import Workbench


def build(bench: Workbench, examples: Sequence[Path]) -> gr.Blocks:
    """Return the page.

    Args:
        bench: The models.
        examples: The files of the pictures that come along.
    """
    with gr.Blocks(title="iFormer explorer", analytics_enabled=False) as blocks:
        gr.HTML(html.render("head"), apply_default_css=False)
        with gr.Row(elem_id="ex-page"):
            with gr.Column(scale=1, min_width=260, elem_id="ex-side"):
                frame = Frame(bench, examples)
            with gr.Column(scale=4, min_width=320), gr.Tabs(selected=frame.first):
                for add in tabs.ALL:
                    add(frame, blocks)
    return blocks
