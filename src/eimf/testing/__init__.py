"""Tests that everybody can run on components of their own: the contract of backbones. Needs pytest."""

from eimf.testing.backbones import BackboneContract

__all__ = ["BackboneContract"]
