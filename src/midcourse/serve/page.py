"""The page: one file, rendered once with the colours of all pages and the names of what is served."""

import base64
import hashlib
import re

from midcourse.serve.served import Served
from midcourse.show.page import rendered

TEMPLATE = "serve/page.html.jinja"


def page(served: Served) -> str:
    """Return the page of a server."""
    rewards = [{"name": name, "weight": reward.reward_weight or 1.0} for name, reward in served.rewards.items()]
    return rendered(
        TEMPLATE, title="midcourse", model=served.name, rewards=rewards, detects=served.detector is not None
    )


def policy_of(html: str) -> str:
    """Return the Content-Security-Policy under which a page runs its own scripts and styles, and no others."""
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
