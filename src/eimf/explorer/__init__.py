"""The interest explorer: a local web page that shows the interests and recommendations for a history."""

from eimf.explorer.server import build_app, serve
from eimf.explorer.view import Explorer, open_runs

__all__ = ["Explorer", "build_app", "open_runs", "serve"]
