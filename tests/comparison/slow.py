"""A callback that makes a tiny run last long enough to be killed in."""

import time
from pathlib import Path

from lightning import Callback, Trainer


class Slow(Callback):
    """Makes steps slow as long as the file ``slow`` is beside the comparison's folder."""

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if (Path(trainer.default_root_dir).parents[2] / "slow").exists():
            time.sleep(0.5)
