"""Run folders: their files, the provenance of results, and copies at W&B."""
