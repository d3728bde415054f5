"""Run folders: their files, where results come from, and mirroring to W&B."""
