"""Training runs: recipes and their launcher, what the tasks and datamodules share, checkpoints, exact resumption."""

from iformer.training.data import DataModule as DataModule
from iformer.training.task import Task as Task
