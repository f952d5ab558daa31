"""The page in headless Chromium: it loads from nowhere else, and shows what a conversation did."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx2 as httpx
import pytest

from served import Scripted, running, scripted_app

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVE = "<script>addEventListener('load', () => {{ $('text').value = {text!r}; $('ask').requestSubmit(); }})</script></body>"


def test_the_page_is_one_file() -> None:
    with running(scripted_app(Scripted())) as url:
        page = httpx.get(url)
        assert page.headers["content-type"].startswith("text/html") and "default-src 'none'" in page.headers["content-security-policy"]  # fmt: skip
        assert not re.search(r"""(src|href)=|@import|url\(|https?://""", page.text)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_conversation_in_chromium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minnow.serve import app

    page = tmp_path / "page.html"
    driven = DRIVE.format(text="<b>hello</b>")
    page.write_text(app._PAGE.read_text(encoding="utf-8").replace("</body>", driven), encoding="utf-8")
    monkeypatch.setattr(app, "_PAGE", page)
    with running(scripted_app(Scripted())) as url:
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/chrome"]
        for _ in range(3):  # a page's virtual time can run out while a loaded machine still answers it
            done = subprocess.run(
                [*command, "--virtual-time-budget=20000", "--dump-dom", url],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            if 'id="m-running">0' in done.stdout and "You said" in done.stdout:
                break
    assert "You said: &lt;b&gt;hello&lt;/b&gt;" in done.stdout
    assert "<b>local</b>" in done.stdout or '<b class="">local</b>' in done.stdout
    assert "ms to first token" in done.stdout and 'id="m-running">0' in done.stdout
