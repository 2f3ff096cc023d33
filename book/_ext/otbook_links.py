"""What `make links` asks of other sites, with Sphinx's builder ``linkcheck``.

Publishers turn programs away, so a DOI is looked up in the DOI system itself: its handle exists or not.
The repository's own address is left out as long as it is the placeholder that nobody has replaced.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx
from sphinx.config import Config

PLACEHOLDER = "YOUR_ACCOUNT"
DOI = re.compile(r"https?://(?:dx\.)?doi\.org/(?=10\.)")


def ask_for_the_handle(app: Sphinx, uri: str) -> str | None:
    """The address that answers whether a DOI exists, or None for other addresses."""
    return DOI.sub("https://doi.org/api/handles/", uri) if DOI.match(uri) else None


def leave_out(app: Sphinx, config: Config) -> None:
    """Set what is not checked, and how patient the check is."""
    config.linkcheck_ignore = [rf".*{PLACEHOLDER}", r"https?://(?:localhost|127\.0\.0\.1)(?::\d+)?(?:/|$)"]
    config.linkcheck_allow_unauthorized = True
    config.linkcheck_anchors = False  # a page that builds its anchors by script would seem to lack them
    config.linkcheck_report_timeouts_as_broken = False
    config.linkcheck_retries = 3


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the functions above to the build."""
    app.connect("config-inited", leave_out)
    app.connect("linkcheck-process-uri", ask_for_the_handle)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
