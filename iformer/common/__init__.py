"""What every other room uses: images, files, pages, figures, provenance."""
