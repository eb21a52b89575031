"""Renders HTML pages from the templates of this package."""

from __future__ import annotations

import base64
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from adaptive_ray import __version__


def render(template: str, **values: Any) -> str:
    """Renders a template. Each of its names must have a value; the filter ``base64`` embeds images."""
    loader = PackageLoader("adaptive_ray")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["base64"] = lambda image: base64.b64encode(image).decode()
    return environment.get_template(template).render(version=__version__, **values)
