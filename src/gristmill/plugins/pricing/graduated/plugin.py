"""Manifest of the graduated price."""

from gristmill.ports.manifest import Manifest

MANIFEST = Manifest(
    name="graduated",
    kind="pricing",
    summary="Each tier of the period's quantity at its own price; an included quota is a first tier at 0.",
    implementation="gristmill.plugins.pricing.graduated.pricing:Graduated",
)
