"""Backbones: models that turn a history of item ids into interest vectors. One file a model.

To add one, write a `Config` and a `Backbone` subclass in a file here, and add a line to `eimf.config.components`. The
tests of `eimf.testing.BackboneContract` then cover it. A backbone in your own package needs no change here.
"""

from eimf.backbones.base import Backbone, CausalBackbone, Interests
from eimf.config.components import BACKBONES
from eimf.config.schema import BackboneConfig

__all__ = ["BACKBONES", "Backbone", "BackboneConfig", "CausalBackbone", "Interests"]
