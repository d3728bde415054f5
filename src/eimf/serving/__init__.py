"""Serves a trained run: behaviour in, ranked items out."""
