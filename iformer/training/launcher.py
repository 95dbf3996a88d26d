"""``iformer fit | validate | test``: LightningCLI over recipes, which name tasks and datamodules by ``class_path``."""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from jsonargparse import ArgumentError
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from pydantic import Field

from iformer.common.provenance import provenance
from iformer.common.ranges import Count, NotNegative, NotNegativeInt, Share, require
from iformer.training import checkpoints, evaluations, learning_rates, recipes
from iformer.training.callbacks import ImagesPerSecond, ProgressBar, SharedBatchNorm, StopEarly, TrainingHealth
from iformer.training.freezing import Freeze
from iformer.training.resumable import SeededSteps, run_seed
from iformer.training.run_folder import MetricsLog, RunRecord, locked
from iformer.training.task import Task
from iformer.training.user_errors import explain, out_of_memory, require_data, user_errors


def run(
    verb: str, arguments: Sequence[str], recipe: str = "", settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Run ``iformer VERB ARGUMENTS``.

    Args:
        verb: ``fit``, ``validate`` or ``test``.
        arguments: The arguments of the command after the verb.
        recipe: The name of the recipe that ``settings`` are, if the arguments name none.
        settings: All settings of that recipe, which the arguments override.

    Returns:
        The last value of each of the ``metrics``, and their provenance: ``recipe``, ``command``, ``seed`` and so on. If
        the task computes them, ``per_class`` has the figures of each class. With ``--find_lr``, ``learning_rate`` takes
        the place of both.

    Raises:
        ValueError: An argument or a key of the recipe is wrong; the message names it in one line.
        OSError: A file is missing or cannot be written.
    """
    name, arguments = recipes.resolve(arguments)
    if settings is not None:
        name, arguments = recipe, [f"--config={yaml.safe_dump(dict(settings), sort_keys=False)}", *arguments]
    with user_errors(), _quiet(), contextlib.ExitStack() as stack:
        cli = _CLI(name, [verb, *arguments], stack)
    metrics = {name: round(float(value), 6) for name, value in cli.trainer.callback_metrics.items()}
    per_class = getattr(cli.model, "per_class", None)
    results = {"recipe": name, "metrics": metrics, **({"per_class": per_class} if per_class else {})}
    if cli.found_lr:
        results = {"recipe": name, "learning_rate": cli.found_lr}
    results = {**results, **provenance(run_seed())}
    cli.write_card(results)
    return results


NOT_THE_USERS = (
    ".*your dataloader is not resumable.*",  # it is, but without the interface that Lightning looks for
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*LeafSpec.*",
    ".*lr_scheduler.step.* before .*optimizer.step.*",  # rates are set for the step to come
)
"""Patterns of warnings about settings that are intended."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Lightning's advertisements and warnings about settings that are intended."""
    lightning = logging.getLogger("lightning.pytorch.utilities.rank_zero")

    def wanted(record: logging.LogRecord) -> bool:
        return "litlogger" not in str(record.msg)

    lightning.addFilter(wanted)
    try:
        with warnings.catch_warnings():
            for message in NOT_THE_USERS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        lightning.removeFilter(wanted)


TRAINER: dict[str, Any] = {
    "accumulate_grad_batches": Count,
    "check_val_every_n_epoch": Count | None,
    "gradient_clip_val": NotNegative | None,
    "log_every_n_steps": NotNegativeInt | None,
    "max_epochs": Annotated[int, Field(ge=-1)] | None,
    "max_steps": Annotated[int, Field(ge=-1)],
    "min_epochs": NotNegativeInt | None,
    "min_steps": NotNegativeInt | None,
    "num_nodes": Count,
    "num_sanity_val_steps": Annotated[int, Field(ge=-1)] | None,
    "reload_dataloaders_every_n_epochs": NotNegativeInt,
    **dict.fromkeys(
        ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches", "val_check_interval"),
        Share | NotNegativeInt | str | None,
    ),
    "devices": Annotated[int, Field(ge=-1)] | list[NotNegativeInt] | str,
}
"""The ranges of Lightning settings that Lightning does not check itself, or for which it prints a traceback."""


class _CLI(LightningCLI):
    """LightningCLI with this project's defaults: the run's folder, loggers, callbacks, resumption and export."""

    def __init__(self, recipe: str, args: list[str], stack: contextlib.ExitStack) -> None:
        self.recipe, self.verb, self.stack = recipe, args[0], stack
        self.found_lr: dict[str, Any] = {}
        self.exported = False
        strict = {"exit_on_error": False, "allow_abbrev": False}
        stack.enter_context(self._memory_errors())
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={
                "default_root_dir": str(Path("runs", recipe)),
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,  # the datamodules' samplers know their rank
                "enable_model_summary": False,
                "log_every_n_steps": 10,
            },
            parser_kwargs={**strict, self.verb: strict},
            args=args,
        )

    @contextlib.contextmanager
    def _memory_errors(self) -> Iterator[None]:
        """Say which settings need less memory if that of a GPU is not enough.

        Raises:
            MemoryError: It is not.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise MemoryError(out_of_memory(error, self.verb, self.config[self.verb])) from error

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the verb, with those arguments of its Trainer method that the user cannot set.

        Lightning makes a parser for each verb that this returns, which takes a third of a second.
        """
        return {self.verb: LightningCLI.subcommands()[self.verb]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the recipe's own sections and ``--resume``."""
        self.verb_parser = parser
        parser.add_lightning_class_args(checkpoints.RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(StopEarly, "early_stopping")
        parser.add_lightning_class_args(Freeze, "freeze")
        parser.add_argument("--resume", action="store_true", help="Take the newest checkpoint of the run's folder.")
        if self.verb == "fit":
            parser.add_argument("--find_lr", action="store_true", help="Suggest a learning rate, and do not train.")

    def _parse_ckpt_path(self) -> None:
        """Ignore a checkpoint's ``hyper_parameters``, which Lightning would merge into the settings.

        Lightning would create objects of the classes that a stranger's file names, and has no option to prevent it.
        This overrides a private method; a test fails when Lightning renames it.
        """

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments without Lightning's warning that they are not those of ``sys.argv``.

        Raises:
            ValueError: An argument or a key of the recipe is wrong.
        """
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise ValueError(explain(str(error), list(self.verb_parser.get_defaults().keys()))) from error
        config = self.config[self.config.subcommand]
        require("seed_everything", config.seed_everything, bool | Annotated[int, Field(ge=0, lt=1 << 32)] | None)
        for name, kind in TRAINER.items():
            require(f"trainer.{name}", config.trainer[name], kind)

    def instantiate_classes(self) -> None:
        """Check the settings of model and data, and create the model, the datamodule and the trainer.

        Raises:
            ValueError: An argument of a class is wrong; the message is the class's own, without jsonargparse's list of
                the types that it tried.
        """
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        if config.ckpt_path is not None and "://" in str(config.ckpt_path):
            # Lightning would load it without the safe loader.
            raise ValueError(f"ckpt_path is {config.ckpt_path}, expected a file or folder on this machine")
        for key in ("model", "data"):
            arguments = config[key].init_args
            require_data(arguments, f"{key}.init_args")
            for name, value in vars(arguments).items():
                if isinstance(value, str) and value.startswith("~/"):  # a path in a recipe, which no shell expands
                    arguments[name] = os.path.expanduser(value)
        if config.ckpt_path is not None:
            config.ckpt_path = os.path.expanduser(config.ckpt_path)
        config.trainer.default_root_dir = os.path.expanduser(config.trainer.default_root_dir)
        recipe = config.clone()
        recipe.pop("find_lr", None)  # which is no setting of a run, and which the other verbs do not know
        self.settings = self.verb_parser.dump(recipe, skip_none=False)
        if config.resume or config.ckpt_path:  # the checkpoint has all weights, so that none are downloaded
            arguments = config.model.init_args
            for name in [name for name in vars(arguments) if name.startswith("pretrained")]:
                arguments[name] = False
        if self.subcommand != "fit" and "distillation" in config.model.init_args:
            config.model.init_args.distillation = None  # a teacher may be gone by then
        try:
            super().instantiate_classes()
        except ValueError as error:
            # jsonargparse puts what a class says into an account of all types that it tried; a test of
            # test_ranges.py fails when that account changes.
            own = re.search(r"Errors:\s+- (.*?)\s+- Expected a", str(error), re.DOTALL)
            raise ValueError(own[1] if own else str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Create the trainer with the loggers, callbacks and plugins that every run has.

        Raises:
            ValueError: Lightning refuses a setting of the trainer.
        """
        config = self.config[self.subcommand]
        self.run_folder = Path(config.trainer.default_root_dir)
        given = self.config_init[self.subcommand].trainer
        logger = given.logger
        if (self.subcommand != "fit" or config.find_lr) and logger is None:
            kwargs["logger"] = False
        elif logger is None or logger is True:
            kwargs["logger"] = [MetricsLog(self.run_folder), TensorBoardLogger(self.run_folder, name="", version="")]
        self.trainer_defaults["callbacks"] = [
            *([ProgressBar()] if config.trainer.enable_progress_bar is not False else []),
            SeededSteps(),
            ImagesPerSecond(),
            TrainingHealth(),
            SharedBatchNorm(),
            *([] if config.trainer.fast_dev_run else [RunRecord(self.recipe, self.settings)]),
        ]
        kwargs["plugins"] = [*(given.plugins or []), checkpoints.AtomicCheckpointIO()]
        try:
            return super().instantiate_trainer(**kwargs)
        except TypeError as error:  # such as that of wrong `devices` on a CPU
            raise ValueError(f"trainer: {error} (devices is {config.trainer.devices})") from error

    def _find_checkpoint(self) -> None:
        """Set the checkpoint to resume from or to evaluate, and check that it holds only weights and plain values."""
        settings = self.config_init[self.subcommand]
        if settings.resume:
            settings.ckpt_path = str(checkpoints.newest(self.run_folder))
        if settings.ckpt_path and Path(settings.ckpt_path).exists():
            checkpoints.require_plain(Path(settings.ckpt_path))

    before_validate = before_test = _find_checkpoint

    def fit(self, **arguments: Any) -> None:
        """Train, or look for a learning rate; Lightning calls this, if it exists, instead of the trainer's ``fit``."""
        if self.config.fit.find_lr:
            picture = self.run_folder / "learning_rates.png"
            self.found_lr = learning_rates.find(self.trainer, self.model, self.datamodule, picture)
        else:
            self.trainer.fit(**arguments)

    def before_fit(self) -> None:
        """Lock the run's folder, and refuse to start anew where an earlier run left checkpoints.

        Raises:
            ValueError: Another process trains in the folder; or it holds checkpoints, but ``--resume`` is not given.
        """
        if self.trainer.is_global_zero:
            self.stack.enter_context(locked(self.run_folder))
        self._find_checkpoint()
        if self.config.fit.find_lr and self.config.fit.trainer.fast_dev_run:
            raise ValueError("--find_lr does not go with trainer.fast_dev_run; give one of them")
        if self.config.fit.resume or self.config.fit.trainer.fast_dev_run or self.config.fit.find_lr:
            return
        if checkpoints.available(self.run_folder):
            raise ValueError(
                f"{self.run_folder}: holds checkpoints of an earlier run; go on with --resume, "
                "or name another folder with --trainer.default_root_dir"
            )

    def after_fit(self) -> None:
        """Export the trained model into the run's folder for ``iformer predict`` and timm."""
        export = getattr(self.model, "export", None)
        if export is None or not self.trainer.is_global_zero or self.config.fit.trainer.fast_dev_run or self.found_lr:
            return
        best = self.run_folder / checkpoints.FOLDER / checkpoints.BEST
        if self.config.fit.checkpoint.best and best.is_file():
            file = best
        elif isinstance(self.trainer.strategy, FSDPStrategy):
            file = checkpoints.newest(self.run_folder)
        else:
            file = None
        weights = torch.load(file, map_location="cpu", weights_only=True)["state_dict"] if file else None
        export(self.run_folder, weights)
        self.exported = True

    def write_card(self, results: Mapping[str, Any]) -> None:
        """Write the model card of the run's folder, or add to it what was measured.

        Raises:
            OSError: The card could not be written.
            ValueError: The card's metadata, which a user may have edited, are not valid.
        """
        if not self.trainer.is_global_zero or not isinstance(self.model, Task):
            return
        if self.exported:
            evaluations.record_training(self.run_folder, self.trainer, results)
        elif self.verb != "fit":
            evaluations.record_evaluation(self.run_folder, self.verb, self.trainer, self.model.model, results)
