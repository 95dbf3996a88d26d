"""The frequency study of what models see: spectra, attention distance, receptive fields and Grad-CAM."""
