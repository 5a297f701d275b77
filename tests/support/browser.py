"A real browser that opens pages, to measure what a person sees."
import json
import re
import shutil
import subprocess
from html import unescape

import pytest

_FRAMES = """<!doctype html><meta charset="utf-8"><body>
{frames}<script>
window.onload = () => {{
  const found = {{}};
  for (const frame of document.querySelectorAll('iframe')) {{
    const page = frame.contentDocument, width = frame.clientWidth;
    found[frame.dataset.name] = (({measure})(page, width));
  }}
  const out = document.createElement('output');
  out.textContent = JSON.stringify(found);
  document.body.append(out);
}};
</script>"""


def measure_pages(folder, pages, width, measure):
    """What the JavaScript function `measure(document, width)` gives for each page, in a frame of `width` pixels; skips
    where no Chromium is installed."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None: pytest.skip("no Chromium is installed")
    frames = "".join(f'<iframe data-name="{name}" src="{path.resolve().as_uri()}" style="width:{width}px;height:844px;'
                     'border:0"></iframe>' for name, path in pages.items())
    (folder / "frames.html").write_text(_FRAMES.format(frames=frames, measure=measure))
    done = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                           "--allow-file-access-from-files",
                           f"--user-data-dir={folder / 'browser'}", "--dump-dom", (folder / "frames.html").as_uri()],
                          capture_output=True, text=True, timeout=120)
    found = re.search(r"<output>(.*?)</output>", done.stdout, re.S)
    assert found, f"the browser measured nothing: {done.stdout[-500:]} {done.stderr[-1000:]}"
    return json.loads(unescape(found[1]))
