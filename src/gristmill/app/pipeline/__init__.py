"""From data to a release: runs, launches and imports, joined out of the stages."""
