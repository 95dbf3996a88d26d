"""What models see: spectra of layers and branches, attention distance, receptive fields, Grad-CAM."""

from iformer.frequency.inputs import open_model as open_model
from iformer.frequency.measurement import measure as measure
