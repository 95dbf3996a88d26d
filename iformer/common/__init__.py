"""Ideas that several rooms share, each in a file: images, batches, files, pages, plotting, provenance, ranges."""
