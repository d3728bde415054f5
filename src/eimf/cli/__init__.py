"""The command `eimf`, one file per group of commands."""
