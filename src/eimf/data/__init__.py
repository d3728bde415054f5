"""Turns raw interactions into batches: sources -> prepare -> splits -> batch."""
