"""The interest explorer: a local web page that shows what a trained model makes of a history."""

from eimf.explorer.server import build_app, serve
from eimf.explorer.view import Explorer, open_runs

__all__ = ["Explorer", "build_app", "open_runs", "serve"]
