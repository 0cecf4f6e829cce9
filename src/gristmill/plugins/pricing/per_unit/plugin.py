"""Manifest of the per-unit price."""

from gristmill.ports.manifest import Manifest

MANIFEST = Manifest(
    name="per_unit",
    kind="pricing",
    summary='The same price for every unit: {"amount": "0.15", "per": 1000000}.',
    implementation="gristmill.plugins.pricing.per_unit.pricing:PerUnit",
)
