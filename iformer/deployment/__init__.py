"""Models made ready for use elsewhere: fused, exported to ONNX, OpenVINO and torch.export, and quantised."""

from iformer.deployment.export import export as export
from iformer.deployment.fuse import fuse as fuse
