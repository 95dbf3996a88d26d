"""Ideas that several rooms share, each in a file: images, files, pages, plotting, provenance, ranges of settings."""
