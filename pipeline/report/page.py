"""The HTML pages: templates filled with figures, charts and pictures; each is one file that requests nothing."""

import base64
import hashlib
import re
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

SCRIPT = "enlarge.js"


def render_page(template: str, **values: Any) -> str:
    """The page of a template in `templates/`; values are escaped, charts are not. Its own script alone may run."""
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shade": shade, "with_code": with_code}
    script, _, _ = PackageLoader("pipeline.report").get_source(environment, SCRIPT)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template)
    return page.render(script=Markup(script), script_hash=f"sha256-{digest}", **values)


def shade(share: float) -> str:
    """The percentage of a color in a cell of a table, below which its text stays readable."""
    return f"{40 * share:.0f}%"


def with_code(text: str) -> Markup:
    """Text with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))
