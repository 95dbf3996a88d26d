"""The ``iformer`` command: parse, call, print.

Each verb imports what it needs only when it runs, so that ``--help`` is instant.
"""

import atexit
import contextlib
import difflib
import gc
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.main import get_command

from iformer_command import extras, terminal
from iformer_command.terminal import say

if TYPE_CHECKING:
    from rich.console import Console

    from iformer.training.folders import Options, Run

app = typer.Typer(help="iFormer, the Inception Transformer (NeurIPS 2022).", no_args_is_help=True, add_completion=False)

MODEL_HELP = "A saved model's folder, the name of one of timm's models, a released file, or hf-hub:USER/NAME."

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def main() -> None:
    """Run the command; exit with status 2 and a one-line message for wrong usage or bad input, and 130 after Ctrl-C."""
    terminal.encode_anything()
    atexit.register(gc.freeze)  # otherwise Python searches all of torch for garbage at exit, for more than a second
    status = 0
    try:
        status = _run(sys.argv[1:] or ["--help"])
        if sys.stdout:
            sys.stdout.flush()
    except OSError as error:  # standard output takes no more: `| head` has ended, or a disk is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # takes what is still to be flushed
        if isinstance(error, BrokenPipeError):
            status = 141
        elif not status:
            status = _fail(f"standard output: {terminal.reason(error)}")
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    """Run the command and return its exit status; report errors, with ``--json`` as a JSON document too."""
    as_json = "--json" in arguments
    try:
        command = get_command(app)
        with command.make_context("iformer", arguments) as context:
            command.invoke(context)
        return 0
    except typer.Exit as end:
        return end.exit_code
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Rich would end it with status 1
            return 141
        raise
    except typer.TyperException as error:
        message = getattr(error, "format_message", error.__str__)()
        return _fail(f"{message} (see --help)", as_json)
    except BrokenPipeError:
        raise
    except (ModuleNotFoundError, OSError, ValueError, MemoryError, RecursionError) as error:
        return _fail(extras.missing(error) or terminal.reason(error), as_json)
    except RuntimeError as error:
        if not terminal.is_out_of_memory(error):
            raise
        return _fail(terminal.reason(error), as_json)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(as_json)


def _fail(message: str, as_json: bool = False) -> int:
    terminal.say(f"iformer: error: {message}", file=sys.stderr)
    if as_json:
        _print_error(message)
    return 2


def _interrupted(as_json: bool = False) -> int:
    print("iformer: interrupted", file=sys.stderr)
    if as_json:
        _print_error("interrupted")
    return 130


def _print_error(message: str) -> None:
    with contextlib.suppress(OSError):  # the error has been reported already
        print(json.dumps({"error": message}))


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the checkpoint and the report.")] = Path("runs/demo"),
    data_dir: Annotated[
        Path, typer.Option(help="Folder of the four files of Fashion-MNIST, downloaded if missing.")
    ] = (Path("data/fashion_mnist")),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 4,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of weights, order and augmentation.")] = 0,
    limit: Annotated[int | None, typer.Option(min=10, help="Use only so many training and test images.")] = None,
    as_json: Json = False,
) -> None:
    """Train iformer_nano on Fashion-MNIST, test it and write a report, in a few minutes on two CPU cores."""
    from iformer.demo import run

    summary = run(output, data_dir, epochs, seed, limit)
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        say(
            "",
            f"{'Test' if summary['completed'] else 'Interrupted; test'} accuracy {summary['accuracy']:.2%} "
            f"on {summary['test_images']:,} images, after {summary['seconds']:.0f} s.",
            f"Report:   {output / 'report.html'}",
            f"Classify: iformer predict IMAGE... --checkpoint {output}",
            f"Explore:  iformer explore --model {output}",
        )
    if not summary["completed"]:
        raise typer.Exit(130)


RECIPE = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=RECIPE, options_metavar="FOLDER|--config RECIPE [OPTIONS] [--KEY VALUE...]")
def fit(
    context: typer.Context,
    model: Annotated[str, typer.Option(metavar="NAME", help="The network or backbone, a model of timm.")] = "",
    weights: Annotated[
        str, typer.Option(metavar="released|random|FILE", help="The weights to begin with; released, if there are any.")
    ] = "",
    image_size: Annotated[
        int | None, typer.Option(min=16, help="Pixels of a side; of a detector's images, the short side.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images in a batch, on each device.")] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="The learning rate after warm-up.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that load images.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of weights, order and augmentation.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The run's folder; default: runs/ and the data's name.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run that is there.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Say what the folder holds and stop; status 2 if something is wrong.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train on a FOLDER: of class folders, of images with annotations in COCO's format, or with label maps.

    Classes, recipe and sizes follow from what it holds. --config RECIPE trains by a recipe instead. All else is set by
    its key in the recipe, such as --trainer.precision bf16-mixed; --config RECIPE --print_config prints all keys.
    """
    recipe_given = any(argument.startswith(("--config", "-c")) for argument in context.args)
    if "--help" in context.args and not recipe_given:
        print(context.get_help())
        return
    from iformer.training import folders

    options = folders.Options(model, weights, image_size, epochs, batch_size, lr, device, workers, output, seed)
    if context.args and not context.args[0].startswith("-"):
        if recipe_given:
            raise typer.BadParameter("expected FOLDER or --config RECIPE; with a recipe, --data.init_args.root FOLDER.")
        folder, *arguments = context.args
        _require_keys(context, arguments)
        _fit_folder(Path(folder), options, arguments, resume, check, as_json)
        return
    if not context.args:
        raise typer.BadParameter("expected a FOLDER or --config RECIPE.")
    if image_size or weights or check:
        raise typer.BadParameter("--image-size, --weights and --check go with a FOLDER, the first argument.")
    given = [*folders.arguments(options), *([f"--model={model}"] if model else []), *["--resume"] * resume]
    _train_or_evaluate("fit", [*given, *context.args], as_json)


SECTIONS = (
    *("model", "data", "trainer", "checkpoint", "early_stopping", "freeze", "optimizer", "lr_scheduler"),
    *("seed_everything", "find_lr", "print_config"),
)
"""What a recipe's keys begin with."""


def _require_keys(context: typer.Context, arguments: Iterable[str]) -> None:
    """Raise BadParameter, with the nearest option, if an argument is neither an option nor a recipe's key."""
    awaited = False  # whether a key's value comes next
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        known = name.startswith("--") and name[2:].split(".")[0] in SECTIONS
        if not known and not awaited:
            near = difflib.get_close_matches(name, [o for p in context.command.params for o in p.opts], n=1)
            raise typer.BadParameter(f"no option {name}{f', did you mean {near[0]}?' if near else ''}")
        awaited = known and not equals and name not in ("--find_lr", "--print_config")


def _fit_folder(data: Path, options: "Options", arguments: list[str], resume: bool, check: bool, as_json: bool) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    from iformer.training.folders import prepare
    from iformer.training.launcher import run

    prepared = prepare(data, options, arguments, again=resume or check)
    rank_zero_only(_print_survey)(prepared)
    if check:
        if as_json:
            print(json.dumps(prepared.document(), indent=2))
        raise typer.Exit(2 if prepared.survey.faults else 0)
    prepared.require_trainable()
    try:
        results = run("fit", [*prepared.arguments, *["--resume"] * resume], prepared.name, prepared.settings)
    except KeyboardInterrupt:
        if prepared.has_begun:
            say("Nothing is lost: the same command goes on with --resume.", file=sys.stderr)
        raise
    results = {**results, "data": prepared.document()}
    rank_zero_only(_print_results)("fit", results, as_json)
    if not as_json and "metrics" in results:  # and not only a learning rate
        rank_zero_only(say)(*prepared.afterwards(results["metrics"]))


@app.command(context_settings=RECIPE)
def validate(context: typer.Context, as_json: Json = False) -> None:
    """Evaluate on the validation images of a recipe: validate --config RECIPE [--resume | --ckpt_path FILE]."""
    _train_or_evaluate("validate", context.args, as_json)


@app.command("test", context_settings=RECIPE)
def evaluate_on_test(context: typer.Context, as_json: Json = False) -> None:
    """Evaluate on the test images of a recipe: test --config RECIPE [--resume | --ckpt_path FILE]."""
    _train_or_evaluate("test", context.args, as_json)


def _train_or_evaluate(verb: str, arguments: list[str], as_json: bool) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    from iformer.training.launcher import run

    if verb != "fit":
        arguments = [*arguments, "--verbose=false"]  # Lightning's table goes where its progress bar does
    results = run(verb, arguments)
    rank_zero_only(_print_results)(verb, results, as_json)


def _print_survey(prepared: "Run") -> None:
    from rich.console import Console

    console = Console(stderr=True)
    for part in prepared.render():
        console.print(part, soft_wrap=True)  # a line of text as it is


def _print_results(verb: str, results: dict[str, Any], as_json: bool) -> None:
    rows = results.get("per_class", [])
    if as_json:
        print(json.dumps(results, indent=2))
    elif found := results.get("learning_rate"):
        say(f"--model.init_args.optimization.lr {found['lr']:g}", f"Losses: {found['picture']}")
    elif verb != "fit":
        _print_rows([{"metric": name, "value": value} for name, value in results["metrics"].items()])
        if len(rows) > 200:
            print(f"\n{len(rows)} classes: see per_class.csv in the run's folder, or use --json")
        elif rows:
            print()
            _print_rows(rows)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for column in rows[0]:
        table.add_column(column, justify="left" if column in ("class", "metric") else "right", overflow="fold")
    for row in rows:
        cells = (
            "-" if v is None else f"{v:.4f}" if isinstance(v, float) else terminal.printable(v) for v in row.values()
        )
        table.add_row(*map(Text, cells))
    _wide_console().print(table)


@app.command()
def predict(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES...", help="Files, folders, quoted patterns, tar files; - reads paths from standard input."
        ),
    ],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help=f"{MODEL_HELP[:-1]}, or an exported file (.onnx, .xml, .pt2).")
    ] = "iformer_small",
    weights: Annotated[str, typer.Option(help="The weights of a model given by its name: a file or a folder.")] = "",
    checkpoint: Annotated[str, typer.Option(metavar="MODEL", help="The same as --model.")] = "",
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    output: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER|FILE",
            help="Folder for pictures, or a file of results: .jsonl, .csv, .parquet, .npy.",
        ),
    ] = Path("predictions"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the results in --output.")] = False,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Least score of objects to draw and print.")] = 0.5,
    features: Annotated[
        str, typer.Option(metavar="pooled|map", help="A classifier's features instead of classes.")
    ] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps; auto: whatever is fastest.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at a time; default: the task's.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Threads that read images ahead.")] = 2,
    as_json: Json = False,
) -> None:
    """Print what is in images: the most probable classes; of a segmenter those that cover most; of a detector objects.

    Segmenters and detectors draw it too, into --output. --json is in COCO's format for a detector.

    Unreadable files are reported and passed over. Under torchrun each process has its part of the images and its file.
    """
    from iformer.common.images import count_images, stream_images
    from iformer.common.results import SUFFIXES
    from iformer.models.prediction import Options, part_of_process, predictions, predictor, write_predictions
    from iformer.models.saved import resolve

    into_file = output.suffix in SUFFIXES
    if resume and not into_file:
        raise typer.BadParameter("--resume needs an --output that ends in .jsonl, .csv, .parquet or .npy.")
    part = rank, processes = part_of_process()
    if processes > 1 and not into_file:
        raise typer.BadParameter("several processes need an --output that ends in .jsonl, .csv, .parquet or .npy.")
    if processes > 1 and "-" in images:
        raise typer.BadParameter("several processes cannot share standard input; name files, folders or patterns.")
    total = count_images(images, part)
    resolved = resolve(checkpoint or model, weights)
    if resolved.is_untrained:
        say(f"iformer: warning: the weights of {resolved.name} are random: its results mean nothing", file=sys.stderr)
    options = Options(top, batch_size, threshold, None if into_file else output, device, precision, workers, features)
    found = predictor(resolved, options)
    tally = _Tally(images)
    if into_file:
        if processes > 1:
            output = output.with_stem(f"{output.stem}-{rank:05}-of-{processes:05}")
        for _ in tally.of(write_predictions(output, resolved, found, images, total, resume, part)):
            pass
        if as_json:
            print(json.dumps({"file": str(output), "images": tally.images, "unreadable": tally.unreadable}))
        else:
            say(f"{output}: {tally.images:,}{' more' * resume} images, {tally.unreadable:,} of them unreadable")
    else:
        results = tally.of(predictions(resolved, found, stream_images(images), total))
        if as_json:
            print(json.dumps(found.document(list(results)), indent=2))
        else:
            for result in results:
                if "error" not in result:
                    say(result["image"], *(f"  {line}" for line in found.lines(result)))
    raise typer.Exit(tally.status())


class _Tally:
    """Counts the results that pass, reports those that are errors, and ends them after Ctrl-C."""

    def __init__(self, named: list[str]) -> None:
        self.named = named
        self.images = self.unreadable = 0
        self.failed = self.interrupted = False

    def of(self, results: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        try:
            for result in results:
                self.images += 1
                if "error" in result:
                    self.unreadable += 1
                    self.failed |= result["image"] in self.named
                    _fail(result["error"])
                yield result
        except KeyboardInterrupt:
            if not self.images:
                raise
            self.interrupted = True

    def status(self) -> int:
        """Return 130 after Ctrl-C, and 2 where a file that was named could not be read, or none could."""
        if self.interrupted:
            return _interrupted()
        return 2 if self.failed or (self.images and self.unreadable == self.images) else 0


@app.command()
def analyze(
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGE_OR_FOLDER...", help="Image files or folders; default: those of --labelled."),
    ] = None,
    model: Annotated[str, typer.Option(metavar="MODEL", help=MODEL_HELP)] = "",
    compare: Annotated[list[str] | None, typer.Option(metavar="MODEL", help="Another model; may be repeated.")] = None,
    checkpoint: Annotated[str, typer.Option(help="The weights of --model: a folder or a file.")] = "",
    untrained: Annotated[bool, typer.Option("--untrained", help="Compare with --model at initialisation.")] = False,
    labelled: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Class folders named like the models' classes: measure which frequencies classifiers use.",
        ),
    ] = None,
    norm: Annotated[
        float | None,
        typer.Option(help="With --labelled, L2 norm of what is added to a channel; default: 4 at 32x32 pixels."),
    ] = None,
    frequencies: Annotated[
        int, typer.Option(min=2, max=512, help="With --labelled, rows and columns of the heat map.")
    ] = 32,
    output: Annotated[Path, typer.Option(help="Folder for figures and report.")] = Path("runs/analysis"),
    target: Annotated[
        str | None, typer.Option(metavar="CLASS", help="Class for Grad-CAM, name or number; default: predicted.")
    ] = None,
    cams: Annotated[int, typer.Option(min=0, help="Number of images with Grad-CAM.")] = 4,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only this many images, and as many of --labelled, evenly spread.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 32,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of untrained weights.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw what models see: spectra of layers and branches (Figs. 1, 4), Grad-CAM (Fig. 5), receptive fields.

    With --labelled, also which frequencies classifiers use: accuracy on filtered images, and Fourier heat maps.
    """
    from iformer.common.images import find_images
    from iformer.frequency import analyze as analysis
    from iformer.frequency import page
    from iformer.frequency.inputs import ImageFiles, open_model
    from iformer.frequency.inputs import untrained as untrained_model
    from iformer.frequency.sensitivity import LabelledImages

    images = images or ([labelled] if labelled else [])
    if not images:
        raise typer.BadParameter("Give images, or --labelled.")
    if norm is not None and not 0 < norm < float("inf"):
        raise typer.BadParameter(f"--norm is {norm}, expected a number above 0.")
    if not model and not checkpoint:
        raise typer.BadParameter("--model or --checkpoint must say which model.")
    files = ImageFiles(find_images(images), batch_size).some(limit)
    measured = None
    if labelled:
        measured = LabelledImages(
            labelled, ImageFiles(find_images([labelled]), batch_size).some(limit), norm, frequencies
        )
    models = [open_model(model, checkpoint, seed)]
    if untrained:
        models.append(untrained_model(model, checkpoint, seed))
    models += [open_model(name, seed=seed) for name in compare or []]
    results = analysis.analyze(models, files, output, target, cams, seed, measured)
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        for each in results["models"]:
            if rows := page.rows(each):
                title = f"{terminal.printable(each['model'])}: share of high-frequency energy in %, log amplitude at π"
                _print_table(title, page.HEADER, rows)
        if results["labelled"]:
            _print_table("Accuracy on filtered images in %", page.ACCURACY_HEADER, page.accuracy_rows(results))
            _print_table("Error rate with a frequency added in %", page.ERROR_HEADER, page.error_rows(results))
        say("", *page.claims(results), *page.notes(results), f"Report: {output / 'report.html'}")
    unreadable = files.unreadable | (measured.images.unreadable if measured else {})
    for message in unreadable.values():
        _fail(message)
    if any(path in images for path in unreadable):
        raise typer.Exit(2)


@app.command()
def explore(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help=f"{MODEL_HELP[:-1]}; may be repeated. Default: the demo's, or else iformer_small.",
        ),
    ] = None,
    analysis: Annotated[
        Path, typer.Option(metavar="FOLDER", help="What analyze --labelled measured, to show accuracies.")
    ] = Path("runs/analysis"),
    search: Annotated[Path, typer.Option(metavar="FOLDER", help="What search found, to begin with its ramps.")] = Path(
        "runs/ramp_search"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port; default: the first free one from 7860 on.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Open a page on which pictures are taken apart: classes, frequencies, branches, the ramp, objects and regions."""
    from iformer.explorer.server import serve, serving

    serve(serving(model or (), host, port, analysis, search, browser))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def compare(
    context: typer.Context,
    config: Annotated[str, typer.Option(metavar="RECIPE", help="The recipe: its file, or its name.")],
    variants: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML: for each variant's name, the recipe's keys that differ.")
    ] = None,
    models: Annotated[
        str, typer.Option(metavar="NAME,NAME,...", help="Models of timm to compare instead of --variants.")
    ] = "",
    seeds: Annotated[
        int, typer.Option(min=1, help="Seeds 0, 1, ... of each variant that has no number of its own.")
    ] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they share the CPU threads.")] = 1,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for runs, results and pages.")] = Path(
        "runs/comparison"
    ),
    as_json: Json = False,
) -> None:
    """Train variants of a recipe with several seeds, and tell which differ: compare --config RECIPE [--key value ...].

    The first variant is the reference. Run again after a kill, it makes only the runs that are missing.
    """
    from iformer.comparison import compare as comparison
    from iformer.comparison import page as comparison_page
    from iformer.comparison import variants as comparison_variants

    chosen = comparison_variants.read(config, variants, models, seeds, context.args)
    try:
        results = comparison.compare(chosen, output, jobs)
    except KeyboardInterrupt:
        say("Nothing is lost: the same command goes on with what is missing.", file=sys.stderr)
        raise
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        _print_table("Scores", comparison_page.SCORE_HEADER, comparison_page.score_rows(results))
        _print_table("Costs", comparison_page.COST_HEADER, comparison_page.cost_rows(results))
        say("", f"Report: {output / 'compare.html'}")
    for each in results["failed"]:
        _fail(f"{each['variant']}, seed {each['seed']}: {each['reason']} (see {each['log']})")
    if results["failed"]:
        raise typer.Exit(2)


@app.command()
def search(
    checkpoint: Annotated[
        str, typer.Option(metavar="RUN", help="The folder of a run by a search recipe, such as search/cifar10.")
    ],
    data: Annotated[str, typer.Option(metavar="FOLDER", help="The images; default: those of the run's recipe.")] = "",
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LIMIT",
            help="macs<=15M, params<=0.95M, latency<=2ms, or macs<=1x of the hand-set ramp; may be repeated. The first "
            "is the cost to weigh against.",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Where latency is measured: eager, fused, onnxruntime or openvino.")
    ] = "openvino",
    candidates: Annotated[int, typer.Option(min=2, help="Ramps to evaluate.")] = 300,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the search.")] = 0,
    device: Annotated[str, typer.Option(help="Where ramps are evaluated: auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for candidates, results and pages.")] = Path(
        "runs/ramp_search"
    ),
    as_json: Json = False,
) -> None:
    """Look for the best frequency ramps within a budget, among those that share the weights of a search run.

    Run again after a kill, it goes on. Several processes with the same --output share the work.
    """
    from iformer.search import budgets, page
    from iformer.search.search import search as look_for_ramps

    limits = budgets.read(budget or [])
    try:
        results = look_for_ramps(checkpoint, data, limits, output, candidates, engine, device, seed)
    except KeyboardInterrupt:
        say("Nothing is lost: the same command goes on with what is missing.", file=sys.stderr)
        raise
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        _print_table("The best ramps with shared weights", page.header(results), page.rows(results))
        say("", *page.lines(results), f"Report: {output / 'search.html'}")


def _print_table(title: str, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=None, title=Text(f"\n{title}", style="table.title"), title_justify="left")
    for row in rows:
        table.add_row(*(Text(terminal.printable(cell)) for cell in row))
    _wide_console().print(table)


@app.command()
def convert(
    released: Annotated[Path, typer.Argument(metavar="RELEASED.pth", help="A checkpoint of the authors' release.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="The model, if the file's name does not tell.")] = "",
    as_json: Json = False,
) -> None:
    """Convert a released checkpoint to safetensors for timm, without running code from it."""
    from iformer.models.released import convert_official

    preset, reason = convert_official(released, out, model)
    if as_json:
        print(json.dumps({"model": preset, "reason": reason, "file": str(out)}))
    else:
        say(
            f"{out}: {preset}, {reason}",
            f'Use it: timm.create_model("{preset.split(".")[0]}", pretrained=True, '
            f'pretrained_cfg_overlay=dict(file="{out}"))',
        )


@app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the models: image size, parameters, multiply-adds and frequency ramp."""
    from rich.console import Console

    from iformer.paper import listing

    with Console(stderr=True).status("Measuring..."):
        found = listing.presets()
    if as_json:
        print(json.dumps(listing.document(found), indent=2))
    else:
        _wide_console().print(listing.render(found))


@app.command()
def tables(
    which: Annotated[str, typer.Argument(metavar="[1|2|3|4|5|all]", help="Table of the paper to print.")] = "all",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a page of Markdown.")] = False,
    figure: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw Fig. 1(c) into this file instead.")] = None,
    as_json: Json = False,
) -> None:
    """Print the paper's tables beside what is measured now: parameters and multiply-adds of real models."""
    from rich.console import Console

    from iformer.paper import page as tables_page
    from iformer.paper import tables as measurement

    if (figure is not None) + markdown + as_json > 1:
        raise typer.BadParameter("--figure, --markdown and --json exclude each other.")
    if figure is not None:
        from iformer.paper import figure_1c

        figure_1c.draw(figure)
        say(figure)
        return
    with Console(stderr=True).status("Measuring..."):
        measured = measurement.tables(which)
    if as_json:
        print(json.dumps(measurement.document(measured), indent=2))
    elif markdown:
        print(tables_page.markdown(measured), end="")
    else:
        _wide_console().print(measurement.render(measured))


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    file_format: Annotated[str, typer.Option("--format", help="onnx, openvino or torch-export.")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8.")] = "fp32",
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Take any batch size, height and width.")] = False,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write; default: the model's name.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Images for the check and for calibrating int8.")
    ] = None,
    labelled: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Labelled images: measure top-1, mIoU (images/val) or AP (val2017) before and after."
        ),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="The weights of a model given by its name: released (the default), random or a file.")
    ] = "",
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="HEIGHT WIDTH", help="A segmenter's image size; default: its crop's."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a model to a file that runs without this package and check it; a detector takes images of any size."""
    from iformer.deployment.export import export as write
    from iformer.deployment.export import lines

    result = write(model, file_format, precision, dynamic, output, images, labelled, weights, size)
    for message in result["unreadable"]:
        _fail(message)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        say(*lines(result))


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of a model, such as a run's.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="USER/NAME on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Let nobody else see the repository.")] = False,
    licence: Annotated[
        str, typer.Option("--license", metavar="NAME", help="The model's licence, such as apache-2.0.")
    ] = "",
    revision: Annotated[str, typer.Option(metavar="BRANCH", help="The branch to write to; default: main.")] = "",
    message: Annotated[str, typer.Option(help="The commit's message.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be uploaded, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Publish a model of any task on the Hugging Face Hub with its card; --model hf-hub:USER/NAME gets it back."""
    from iformer.deployment.publish import lines
    from iformer.deployment.publish import publish as upload

    result = upload(folder, repository, private, revision, message, licence, dry_run)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        say(*lines(result))


@app.command()
def benchmark(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="A timm model, a saved model's folder, or module:callable; may be repeated. Default: iformer_small.",
        ),
    ] = None,
    task: Annotated[
        str, typer.Option(help="detection or segmentation: Mask R-CNN or Semantic FPN around the models of timm.")
    ] = "",
    engines: Annotated[
        str, typer.Option(help="Among eager, fused, compile, onnxruntime, openvino; comma-separated.")
    ] = "eager,fused,onnxruntime,openvino",
    precisions: Annotated[str, typer.Option(help="Among fp32, bf16, fp16, int8; comma-separated.")] = "fp32",
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Images in a batch; may be repeated. Default: 1.")
    ] = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="HEIGHT WIDTH", help="Pixels of the images; default: what each model is for."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Measure predict on these images too, from the files to the results."),
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Threads that read images ahead, with --images.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Number of interleaved rounds.")] = 10,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's choice by default.")] = None,
    figure: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the latencies into this file.")] = None,
    as_json: Json = False,
) -> None:
    """Measure models of any task side by side: latency, throughput, memory, share of the matrix-multiply peak."""
    from iformer.benchmark import end_to_end
    from iformer.benchmark import page as benchmark_page
    from iformer.benchmark import rounds as measurement
    from iformer.benchmark.configurations import combinations

    chosen = combinations(
        model or ["iformer_small"], engines.split(","), precisions.split(","), batch or [1], size, device, task
    )
    files = end_to_end.files(images, chosen) if images else []
    results = measurement.run(chosen, rounds, threads)
    if files:
        results["end_to_end"] = end_to_end.run(chosen, files, workers, rounds)
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        _wide_console().print(*benchmark_page.render(results))
    if figure is not None:  # last, so that the results are not lost if the picture cannot be written
        benchmark_page.draw(results, figure)


def _wide_console() -> "Console":
    """Return a console for tables on standard output, as wide as the terminal, or 120 columns if there is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout and sys.stdout.isatty() else 120)
