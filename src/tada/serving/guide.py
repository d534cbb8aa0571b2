"""The page at /docs: what a server takes and answers, made of its OpenAPI description. It has no script."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup, escape

from tada.serving.limits import Limits


def guide(description: dict[str, Any], limits: Limits, url: str) -> str:
    """The page.

    Args:
        description: of the server, in OpenAPI's form.
        url: of the server, with a slash at its end.
    """
    paths = [
        {"method": method.upper(), "path": path, **about}
        for path, methods in description["paths"].items()
        for method, about in methods.items()
    ]
    schemas = description.get("components", {}).get("schemas", {})
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["words"] = _with_code
    template = environment.from_string(files("tada.serving").joinpath("guide.html").read_text(encoding="utf-8"))
    return template.render(
        about=description["info"],
        paths=paths,
        schemas={name: json.dumps(schema, indent=2, ensure_ascii=False) for name, schema in schemas.items()},
        limits=[(entry.name, f"{getattr(limits, entry.name):g}") for entry in fields(limits)],
        url=url,
    )


def _with_code(text: str) -> Markup:
    """Text in which `this` is code."""
    return Markup(re.sub("`([^`]*)`", r"<code>\1</code>", str(escape(text))))
