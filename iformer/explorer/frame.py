"""What all panels of the explorer's page share: the picture and the model, when a panel is filled, and its events."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from iformer.explorer import html
from iformer.explorer.workbench import Workbench
from iformer_command.terminal import ITEM_ERRORS, reason

PRIVATE: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "always_last"}
LOUD: dict[str, Any] = {**PRIVATE, "show_progress": "full"}
QUIET: dict[str, Any] = {**PRIVATE, "show_progress": "hidden"}
"""Arguments of events, with a spinner or without one. If one comes again while it is handled, the last one counts."""

LISTENER = """
element.addEventListener('click', event => {
  const picked = event.target.closest('[data-pick]');
  if (picked) trigger('pick', {value: picked.dataset.pick});
  const save = event.target.closest('[data-save]');
  if (save) {
    const link = document.createElement('a');
    const picture = save.tagName === 'IMG' ? save : save.closest('figure').querySelector('img');
    link.href = picture.src;
    link.download = save.dataset.save + (link.href.startsWith('data:image/png') ? '.png' : '.jpg');
    link.click();
  }
  const place = event.target.closest('[data-place]');
  if (place) {
    const box = place.getBoundingClientRect();
    trigger('place', {x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height});
  }
});
element.addEventListener('input', event => {
  const moved = event.target;
  moved.previousElementSibling.textContent = moved.value;
  moved.style.setProperty('--share', 100 * moved.value / moved.max + '%');
  const sliders = [...element.querySelectorAll('input[type=range]')];
  trigger('slide', {value: sliders.map(slider => Number(slider.value))});
});
"""
"""What a part of the page does: it saves pictures, and tells which class or block was picked, which place in a picture,
and how its sliders stand."""


def part(name: str) -> Any:
    """Return a part of a panel with the events ``pick``, ``place`` and ``slide``; ``name`` is its id on the page."""
    return gr.HTML(js_on_load=LISTENER, apply_default_css=False, elem_id=name)


def given_file(given: dict[str, Any] | None, folder: Path) -> str | None:
    """Return the path of a picture that was given; None if none was, or one that is not in the folder of the page.

    A browser could name any file of this machine otherwise.
    """
    file = Path(given["path"]).resolve() if given else None
    return str(file) if file and file.is_relative_to(folder.resolve()) else None


class Frame:
    """What all panels share: the picture, the model, and which panel is open. It is made inside the page.

    Args:
        bench: The models.
        examples: The files of the pictures that come along.

    Attributes:
        picture: The file of the picture, as it was given: the panels read and check it themselves.
        model: The component of the model.
        first: The name of the panel that is open at the beginning.
    """

    def __init__(self, bench: Workbench, examples: Sequence[Path]) -> None:
        self.bench = bench
        names = bench.names
        self.first = "classify" if bench.whole(names[0]).task == "classification" else "scenes"
        self.current = gr.State(self.first)
        self.picture = gr.State(str(examples[0]))
        given = gr.Image(
            str(examples[0]),
            label="Picture",
            sources=["upload", "clipboard", "webcam"],
            height=250,
            elem_id="ex-picture",
            buttons=[],
        )
        gr.Examples([[str(file)] for file in examples], [given], label="Examples", elem_id="ex-examples")
        # Without preprocessing Gradio hands over its file's name, and does not read the file.
        take = functools.partial(given_file, folder=examples[0].parent)
        given.change(take, given, self.picture, preprocess=False, **QUIET)
        self.model = gr.Dropdown(names, value=names[0], label="Model", elem_id="ex-model", filterable=False)

    def show(
        self, tab: gr.Tab, name: str, panel: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]
    ) -> list[Any]:
        """Show a panel when its tab is opened, and when the picture or the model changes while it is open.

        Args:
            tab: The tab.
            name: The panel's name.
            panel: The function that computes the outputs.
            inputs: The components whose values it takes.
            outputs: The components that it fills; the first one shows that it is at work.

        Returns:
            The events after which the panel is complete.
        """

        def refreshed(current: str, *arguments: Any) -> Any:
            return panel(*arguments) if current == name else [gr.skip() for _ in outputs]

        loud = {**LOUD, "show_progress_on": outputs[0]}
        opened = tab.select(lambda: name, outputs=self.current, **QUIET).then(panel, inputs, outputs, **loud)
        changed = gr.on([self.picture.change, self.model.change], refreshed, [self.current, *inputs], outputs, **loud)
        return [opened, changed]


def told(function: Callable[..., Any], *rest: Any) -> Callable[..., Any]:
    """Return a function that gives a sentence as its first output if its input is wrong, and ``rest`` as the others."""

    @functools.wraps(function)
    def safe(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ITEM_ERRORS as error:
            return (html.note(reason(error)), *rest) if rest else html.note(reason(error))

    return safe


def same() -> gr.HTML:
    """Return the component, folded away, for the commands that make the same as a panel."""
    with gr.Accordion("Make the same yourself", open=False):
        return gr.HTML(apply_default_css=False)
