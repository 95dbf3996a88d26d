"""A callback that makes a tiny run last long enough to be killed in."""

import time

from lightning import Callback


class Slow(Callback):
    def on_train_batch_end(self, *_: object) -> None:
        time.sleep(0.1)
