"""``iformer fit | validate | test``: LightningCLI over recipes, whose class_path finds tasks and data."""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from jsonargparse import ArgumentError
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from pydantic import Field

from iformer.common.provenance import provenance
from iformer.common.ranges import Count, NotNegative, NotNegativeInt, Share, require
from iformer.training import checkpoints, recipes
from iformer.training.callbacks import ImagesPerSecond, ProgressBar, SharedBatchNorm, TrainingHealth
from iformer.training.resumable import SeededSteps, run_seed
from iformer.training.run_state import MetricsLog, RunRecord, locked
from iformer.training.user_errors import explain, require_data, user_errors


def run(verb: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``iformer VERB ARGUMENTS``.

    Returns:
        ``metrics``, the last value of each, and where they come from: ``recipe``, ``command``, ``seed`` and so on;
        ``per_class`` too, a row for each class, where the task keeps that.

    Raises:
        ValueError: An argument or a key of the recipe is wrong, in one line that names it.
        OSError: A file is missing or cannot be written.
    """
    name, arguments = recipes.resolve(arguments)
    with user_errors(), _quiet(), contextlib.ExitStack() as stack:
        cli = _CLI(name, [verb, *arguments], stack)
    metrics = {name: round(float(value), 6) for name, value in cli.trainer.callback_metrics.items()}
    per_class = getattr(cli.model, "per_class", None)
    results = {"recipe": name, "metrics": metrics, **({"per_class": per_class} if per_class else {})}
    return {**results, **provenance(run_seed())}


NOT_THE_USERS = (
    ".*your dataloader is not resumable.*",  # it is, but not by the interface that Lightning looks for
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*LeafSpec.*",
    ".*lr_scheduler.step.* before .*optimizer.step.*",  # rates are set for the step to come
)
"""Warnings about what is as it is meant to be."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advertisements, and warnings about what is as it is meant to be, from the user."""
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
"""Ranges of those of Lightning's settings that it does not check itself, or with a traceback."""


class _CLI(LightningCLI):
    """LightningCLI with this project's defaults: folder of the run, loggers, callbacks, resumption, export."""

    def __init__(self, recipe: str, args: list[str], stack: contextlib.ExitStack) -> None:
        self.recipe, self.stack = recipe, stack
        self.parsers: list[LightningArgumentParser] = []
        strict = {"exit_on_error": False, "allow_abbrev": False}
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
            parser_kwargs={**strict, **dict.fromkeys(self.subcommands(), strict)},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The verbs, and what of their methods' arguments is not the user's."""
        return {verb: arguments for verb, arguments in LightningCLI.subcommands().items() if verb != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Give checkpoints a section of their own in a recipe; called for each verb."""
        self.parsers.append(parser)
        parser.add_lightning_class_args(checkpoints.RunCheckpoint, "checkpoint")
        parser.add_argument("--resume", action="store_true", help="Take the newest checkpoint of the run's folder.")

    def _parse_ckpt_path(self) -> None:
        """Take nothing from a checkpoint's ``hyper_parameters``, which Lightning would put into the settings.

        Classes that a stranger's file names would be made. The name is Lightning's, which has no switch for this; a
        test fails when it changes.
        """

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """As Lightning does, but without a warning that the arguments are not those of sys.argv.

        Raises:
            ValueError: An argument, or a key of the recipe, is wrong.
        """
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise ValueError(explain(str(error), list(self._parser_of(args[0]).get_defaults().keys()))) from error
        config = self.config[self.config.subcommand]
        require("seed_everything", config.seed_everything, bool | Annotated[int, Field(ge=0, lt=1 << 32)] | None)
        for name, kind in TRAINER.items():
            require(f"trainer.{name}", config.trainer[name], kind)

    def _parser_of(self, verb: str) -> LightningArgumentParser:
        return dict(zip(self.subcommands(), self.parsers, strict=True))[verb]

    def instantiate_classes(self) -> None:
        """As Lightning does.

        Raises:
            ValueError: What a class raised for its arguments, without jsonargparse's account of the types it tried.
        """
        assert self.subcommand is not None
        config = self.config[self.subcommand]
        if config.ckpt_path is not None and "://" in str(config.ckpt_path):
            # Lightning would load it without the safe loader.
            raise ValueError(f"ckpt_path is {config.ckpt_path}, expected a file or folder of this machine")
        for key in ("model", "data"):
            arguments = config[key].init_args
            require_data(arguments, f"{key}.init_args")
            for name, value in vars(arguments).items():
                if isinstance(value, str) and value.startswith("~/"):  # a path, which no shell has seen
                    arguments[name] = os.path.expanduser(value)
        if config.ckpt_path is not None:
            config.ckpt_path = os.path.expanduser(config.ckpt_path)
        config.trainer.default_root_dir = os.path.expanduser(config.trainer.default_root_dir)
        self.settings = self._parser_of(self.subcommand).dump(config, skip_none=False)
        if config.resume or config.ckpt_path:  # the checkpoint has all weights: nothing is to be fetched
            arguments = config.model.init_args
            for name in [name for name in vars(arguments) if name.startswith("pretrained")]:
                arguments[name] = False
        try:
            super().instantiate_classes()
        except ValueError as error:
            own = re.search(r"Errors:\s+- (.*?)\s+- Expected a", str(error), re.DOTALL)
            raise ValueError(own[1] if own else str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add what every run has."""
        config = self.config[self.subcommand]
        self.run_folder = Path(config.trainer.default_root_dir)
        given = self.config_init[self.subcommand].trainer
        logger = given.logger
        if self.subcommand != "fit" and logger is None:
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
        except TypeError as error:  # the error of CPUs about `devices`, for one
            raise ValueError(f"trainer: {error} (devices is {config.trainer.devices})") from error

    def _find_checkpoint(self) -> None:
        """Name the checkpoint to go on from, or to evaluate, and see that it is a plain one."""
        settings = self.config_init[self.subcommand]
        if settings.resume:
            settings.ckpt_path = str(checkpoints.newest(self.run_folder))
        if settings.ckpt_path and Path(settings.ckpt_path).exists():
            checkpoints.require_plain(Path(settings.ckpt_path))

    before_validate = before_test = _find_checkpoint

    def before_fit(self) -> None:
        """Keep others out of the run's folder, and look at what an earlier run left.

        Raises:
            ValueError: Another process trains there; or there are checkpoints, and the run is not to resume.
        """
        if self.trainer.is_global_zero:
            self.stack.enter_context(locked(self.run_folder))
        self._find_checkpoint()
        if self.config.fit.resume or self.config.fit.trainer.fast_dev_run:
            return
        if checkpoints.available(self.run_folder):
            raise ValueError(
                f"{self.run_folder}: holds checkpoints of an earlier run; go on with --resume, "
                "or name another folder with --trainer.default_root_dir"
            )

    def after_fit(self) -> None:
        """Export the model, so that ``iformer predict`` and timm find it."""
        export = getattr(self.model, "export", None)
        if export is None or not self.trainer.is_global_zero or self.config.fit.trainer.fast_dev_run:
            return
        if isinstance(self.trainer.strategy, FSDPStrategy):
            saved = torch.load(checkpoints.newest(self.run_folder), map_location="cpu", weights_only=True)
            export(self.run_folder, saved["state_dict"])
        else:
            export(self.run_folder)
