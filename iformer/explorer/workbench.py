"""The models that the explorer shows, and the results that it has computed with them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from iformer.explorer import pictures
from iformer.explorer.pictures import Picture
from iformer.frequency.inputs import Backbone, open_model
from iformer.models.prediction import find_device
from iformer.models.saved import Model

DEMO = Path("runs/demo")
"""The folder that ``make demo`` leaves behind."""

TASKS = {"detection": "detector", "segmentation": "segmenter"}
"""What models of other tasks than classification are called."""

T = TypeVar("T")


@dataclass(frozen=True)
class View:
    """What a panel shows.

    Attributes:
        html: The panel's HTML.
        same: HTML with commands and programs that make the same.
    """

    html: str
    same: str = ""


class Thread:
    """A thread in which functions are called, one after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "explorer")

    def run(self, function: Callable[[], T]) -> T:
        """Return what a function returns, which is called in the thread."""
        return self._thread.submit(function).result()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)


class Workbench(Thread):
    """Opened models, and one thread in which all computing is done.

    One thread is enough, because PyTorch uses all cores, and more would each keep memory of their own.

    Args:
        references: The models, as :func:`iformer.models.saved.resolve` takes them; none for the demo's model if it has
            been trained, and else the released ``iformer_small``.
        analysis: The folder of ``iformer analyze --labelled`` from which measured accuracies are taken.
        search: The folder of ``iformer search`` from which ramps are taken.

    Attributes:
        measuring: A thread that waits for measurements in other processes, while this one goes on answering.

    Raises:
        ValueError: There is no such model.
        OSError: A model cannot be read or downloaded.
    """

    def __init__(
        self,
        references: Sequence[str] = (),
        analysis: Path = Path("runs/analysis"),
        search: Path = Path("runs/ramp_search"),
    ) -> None:
        self.analysis, self.search = analysis, search
        self.models = {name: open_model(name) for name in references} if references else _default()
        for model in self.models.values():
            model.network.to(find_device("auto"))
        super().__init__()
        self.measuring = Thread()
        self.pictures: Results[Picture] = Results(self, 4)

    @property
    def names(self) -> list[str]:
        """The references of the models, by which the page calls them."""
        return list(self.models)

    def picture(self, file: str | None) -> Picture:
        """Return the picture in a file.

        Raises:
            ValueError: See :func:`iformer.explorer.pictures.read`.
        """
        if not file or not Path(file).is_file():
            return pictures.read(file)
        return self.pictures.once((file, Path(file).stat().st_mtime_ns), lambda: pictures.read(file))

    def whole(self, name: str) -> Model:
        """Return a model for its task."""
        model = self.models[name]
        return model.whole if isinstance(model, Backbone) and model.whole else model

    def classifier(self, name: str) -> Model:
        """Return a classifier.

        Raises:
            ValueError: The model has another task. The message is for the page.
        """
        model = self.whole(name)
        if model.task != "classification":
            what = TASKS[model.task]
            raise ValueError(f"{name} is a {what} and names no class of the whole picture: see Objects and regions.")
        return model

    def inputs(self, name: str, picture: Picture) -> Tensor:
        """Return a picture as the input ``(1, C, H, W)`` of a classifier, or of another network's backbone."""
        model = self.models[name]
        image = picture.image.convert("L") if model.channels == 1 else picture.image
        prepared: Tensor = model.prepare(image)
        return prepared[None].to(model.device)

    def close(self) -> None:
        """End the threads."""
        self.measuring.close()
        super().close()


class Results(Generic[T]):
    """Results by key, each computed once; those that were not used for longest are forgotten.

    Args:
        thread: The thread in which they are computed, which is the workbench but for measurements.
        most: The number of results that are kept.
    """

    def __init__(self, thread: Thread, most: int) -> None:
        self.thread, self.most = thread, most
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the result of a key, which is computed if it is not there."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        return self.thread.run(lambda: self._computed(key, compute))

    def _computed(self, key: Hashable, compute: Callable[[], T]) -> T:
        if key not in self._kept:  # another request may have computed it since
            result = compute()
            with self._lock:
                self._kept[key] = result
                while len(self._kept) > self.most:
                    self._kept.popitem(last=False)
        with self._lock:
            return self._kept[key]


@torch.inference_mode()
def probabilities(model: Model, images: Tensor) -> Any:
    """Return the probabilities ``(N, K)`` of a classifier's classes as an array."""
    return model.probabilities(model.network(images)).cpu().numpy()


def _default() -> dict[str, Model]:
    if (DEMO / "model.safetensors").is_file():
        return {str(DEMO): open_model(str(DEMO))}
    try:
        return {"iformer_small": open_model("iformer_small")}
    except OSError as error:
        raise OSError(
            f"{DEMO}: no demo has been trained there (make demo does), and the weights of iformer_small could not be "
            "fetched; give a model: --model FOLDER or --model FILE"
        ) from error
