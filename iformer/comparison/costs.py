"""What the variants' networks cost: parameters, multiply-adds, and the latency of one image."""

import hashlib
import importlib.util
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iformer.benchmark import rounds
from iformer.benchmark.configurations import Configuration, network
from iformer.common.files import write_json

ROUNDS = 10


def size(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``image_size`` (height, width), the ``parameters`` and the ``multiply_adds`` of a network.

    The multiply-adds are those of matrix products and convolutions for one image.

    Args:
        config: The contents of the ``config.json`` of a saved model.
    """
    with tempfile.TemporaryDirectory() as folder:
        configuration = _configuration(config, Path(folder), "eager")
        return {
            "image_size": [configuration.height, configuration.width],
            "parameters": sum(parameter.numel() for parameter in network(configuration).parameters()),
            "multiply_adds": rounds.multiply_adds(configuration),
        }


def latencies(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Measure the latency of one image for several networks side by side, see :mod:`iformer.benchmark`.

    The networks have random weights, which take as long as trained ones. They run as they are (eager), and in OpenVINO
    if it is installed; detectors only as they are. What does not run in an engine is left out there.

    Args:
        configs: The contents of ``config.json`` of each variant's network.

    Returns:
        ``variants``, with the milliseconds (median and quartiles) of each variant in each engine; ``failed``, with the
        reasons for those that are left out; ``networks``, a digest of each variant's; and the machine, versions and
        settings of the measurement.
    """
    measured: dict[str, Any] = {name: {} for name in configs}
    reasons: dict[str, Any] = {name: {} for name in configs}
    failed: dict[Configuration, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        chosen = {
            (name, engine): _configuration(config, Path(folder, name), engine)
            for name, config in configs.items()
            for engine in _engines(config)
        }
        results = rounds.run(list(chosen.values()), ROUNDS, failed=failed)
    rows = iter(results["variants"])
    for (name, engine), configuration in chosen.items():
        if configuration in failed:
            reasons[name][engine] = failed[configuration]
        else:
            row = next(rows)
            measured[name][engine] = {"milliseconds": row["milliseconds"], "quartiles": row["quartiles"]}
    networks = {name: _digest(config) for name, config in configs.items()}
    kept = ("command", "versions", "python", "machine", "rounds")
    return {"variants": measured, "failed": reasons, "networks": networks, **{key: results[key] for key in kept}}


def kept_latencies(configs: Mapping[str, Mapping[str, Any]], file: Path) -> dict[str, Any]:
    """Return the latencies in ``file``; if it lacks a network or an engine, measure all of them and write it.

    Raises:
        OSError: The file could not be written.
    """
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        if all(_known(found, name, config) for name, config in configs.items()):
            return dict(found)
    found = latencies(configs)
    write_json(file, found)
    return found


def _known(found: Mapping[str, Any], name: str, config: Mapping[str, Any]) -> bool:
    """Return whether latencies are known of this very network, in all engines that there are."""
    if found.get("networks", {}).get(name) != _digest(config):
        return False
    return {*_engines(config)} <= {*found["variants"][name], *found["failed"][name]}


def _digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _engines(config: Mapping[str, Any]) -> list[str]:
    openvino = importlib.util.find_spec("openvino") is not None and config.get("task") != "detection"
    return ["eager", *(["openvino"] if openvino else [])]


def _configuration(config: Mapping[str, Any], folder: Path, engine: str) -> Configuration:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return Configuration(str(folder), engine, "fp32", 1, *_image_size(config))


def _image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return the height and width of an image as the network takes it in evaluation, or in training if that is open."""
    match config.get("task", "classification"):
        case "classification":
            _, height, width = config["pretrained_cfg"]["input_size"]
        case "segmentation":
            height, width = config.get("window") or config.get("resize") or config.get("crop") or (512, 512)
        case _:  # a detector takes images of any size: one of 4:3
            sides = config["network"].get("min_size", 800)
            height = sides if isinstance(sides, int) else max(sides)
            width = min(math.ceil(height * 4 / 3), config["network"].get("max_size", 1333))
    return int(height), int(width)
