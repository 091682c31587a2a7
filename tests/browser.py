"""A page as headless Chromium sees it, where there is one."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def probed(page: Path, folder: Path, script: str) -> dict[str, Any]:
    """What a script that runs at the page's end put into `seen`; `folder` takes the browser's own files."""
    code = f"""<script>{{ const seen = {{}};
    try {{ {script} }} catch (error) {{ seen.error = String(error); }}
    const report = document.createElement("pre");
    report.id = "seen";
    report.textContent = encodeURIComponent(JSON.stringify(seen));
    document.body.append(report); }}</script></body>"""
    copy = folder / "probed.html"
    head, end, tail = page.read_bytes().rpartition(b"</body>")
    assert end
    copy.write_bytes(head + code.encode() + tail)
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom"]
    command += ["--virtual-time-budget=3000", f"--user-data-dir={folder / 'profile'}", copy.as_uri()]
    dom = subprocess.run(command, capture_output=True, check=True, timeout=300).stdout.decode()
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom)
    assert found, "the page's script did not run"
    seen = json.loads(unquote(found[1]))
    assert "error" not in seen, seen["error"]
    return seen
