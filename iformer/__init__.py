"""iFormer, the Inception Transformer (NeurIPS 2022). Importing this package registers its models with timm."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

__version__ = "0.1.0"


class _AfterTimm(importlib.abc.MetaPathFinder):
    """Registers the models as soon as timm has been imported.

    Importing timm here instead would load torch, and ``iformer --help`` would take seconds.
    """

    searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "timm" or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec("timm")
        finally:
            self.searching = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            importlib.import_module("iformer.models.presets")

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "timm" in sys.modules:
    importlib.import_module("iformer.models.presets")
else:
    sys.meta_path.insert(0, _AfterTimm())
