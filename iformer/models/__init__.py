"""The networks: the paper's backbone, its presets, released and saved weights, and what may stand for a model."""

from iformer.models.inception_transformer import InceptionTransformer as InceptionTransformer
from iformer.models.recomputation import recompute as recompute
from iformer.models.saved import Model as Model
from iformer.models.saved import resolve as resolve
from iformer.models.saved import save as save
