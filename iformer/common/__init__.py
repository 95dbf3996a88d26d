"""What every other package uses: images, files, pages, figures and provenance."""
