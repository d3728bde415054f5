"""Tests that everybody can run: the contract of backbones."""
