"""The command `eimf`, one file a group of commands."""
