"""The registry: base models, releases, and the aliases that name them."""
