"""Predict what is in images on all machines of a Ray cluster, or on all cores of this one.

pip install "iformer-inception[ray]"
python examples/predict_with_ray.py photographs/ --model runs/cifar10 --output results --processes 2

The output is a folder that reads as one Parquet data set, with the columns that `iformer predict` writes into a file.
"""

import argparse
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from iformer.common.images import find_images
from iformer.common.results import arrow_schema
from iformer.models.prediction import Options, predictions, predictor
from iformer.models.saved import resolve


class Predict:
    """A process that keeps a model and predicts a batch of images whenever it is given one."""

    def __init__(self, model: str, options: Options) -> None:
        self.model = resolve(model)
        self.predictor = predictor(self.model, options)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the results of a table of files, as a table."""
        files = [Path(name) for name in batch["image"].to_pylist()]
        results = list(predictions(self.model, self.predictor, files))
        return pa.Table.from_pylist(results, arrow_schema(self.predictor.schema))


def predict(images: list[str], model: str, output: str, processes: int, gpus: float, batch_size: int) -> None:
    """Predict images and write the results as a Parquet data set.

    Args:
        images: Image files and folders, which every machine must see under the same paths.
        model: The model, as `iformer predict --model` takes it.
        output: The folder of the results, or any other place where pyarrow can write.
        processes: The number of processes that keep the model.
        gpus: The number of GPUs of each process, which may be a fraction; 0 for none.
        batch_size: The number of images that a process is given at a time.
    """
    model = str(Path(model).resolve()) if Path(model).exists() else model  # the processes work elsewhere
    names: Any = ray.data.from_items([{"image": str(path.resolve())} for path in find_images(images)])
    options = Options(output=None, workers=2, device="auto" if gpus else "cpu")
    names.map_batches(
        Predict,
        fn_constructor_args=(model, options),
        compute=ActorPoolStrategy(size=processes),
        num_cpus=1,
        num_gpus=gpus,
        batch_size=batch_size,
        batch_format="pyarrow",
    ).write_parquet(output)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="image files and folders")
    parser.add_argument("--model", default="iformer_small")
    parser.add_argument("--output", default="results")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each process")
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    predict(**vars(arguments))


if __name__ == "__main__":
    main()
