"""What models see: spectra of layers and branches, attention distance, receptive fields, Grad-CAM."""
