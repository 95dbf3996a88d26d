"""One recipe, several variants and seeds: their runs, statistics and page."""
