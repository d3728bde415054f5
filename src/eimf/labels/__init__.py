"""Explicit interests: typical users, prompts, LLM backends, and the cache of replies. Never used at inference."""
