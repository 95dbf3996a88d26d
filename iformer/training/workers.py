"""Loader workers and signals."""

import multiprocessing
import os
import signal
import threading


def leave_signals_to_the_run(worker: int) -> None:
    """``worker_init_fn`` of every loader: survive a SIGTERM or Ctrl-C that reaches all of the run's processes.

    torchrun and SLURM signal whole groups of processes. A worker that died of it would take the run with it before
    :class:`~iformer.training.checkpoints.RunCheckpoint` could save. SIGTERM from the main process still ends a worker:
    that is how Python gets rid of those that are left when it exits, and it would wait for them for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux: who sent it is not known elsewhere
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_main_says_so, daemon=True).start()


def _end_when_main_says_so() -> None:
    main = multiprocessing.parent_process()
    while main is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != main.pid:
        pass
    os._exit(128 + signal.SIGTERM)
