"""EIMF's training: explicit interests as supervision, and the auxiliary tasks. Never used at inference."""
