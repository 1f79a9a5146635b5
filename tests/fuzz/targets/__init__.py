"""The fuzz targets: one for each parser and verifier that meets bytes of a peer."""

from __future__ import annotations

from collections.abc import Mapping

from . import cards, ceremonies, certificates, containers, leaves, metadata, signed, tpm
from .target import SECONDS_PER_INPUT, Shape, Target

__all__ = ["SECONDS_PER_INPUT", "TARGETS", "Shape", "Target"]

TARGETS: Mapping[str, Target] = {
    target.name: target
    for module in (containers, signed, ceremonies, leaves, certificates, cards, tpm, metadata)
    for target in module.TARGETS
}
