"""Errors, options, registries, files and artifacts. Imports nothing else of the package."""
