"What must hold in a page that needs nothing else."
import re
from html.parser import HTMLParser

from mlops_nb.report.page_script import THRESHOLD_SCRIPT, script_hash


class Links(HTMLParser):
    "Everything in a page that acts or points somewhere."
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.loads, self.handlers, self.styles = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.styles += [v or "" for k, v in attrs if k == "style"]
        for k, v in attrs:
            if k.startswith("on"): self.handlers.append(k)
            if k == "href" and tag == "a": self.links.append(v)
            elif k in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"): self.loads.append(v)

    def handle_data(self, data):
        if self.cdata_elem == "style": self.styles.append(data)


def self_contained(text):
    found = Links(text)
    assert not {"iframe", "object", "embed", "form", "base"} & set(found.tags)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert found.tags.count("script") == len(scripts) and set(scripts) <= {THRESHOLD_SCRIPT}
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert ("script-src" in policy) == bool(scripts)
    assert not scripts or f"script-src '{script_hash(THRESHOLD_SCRIPT)}'" in policy
    assert not found.handlers
    assert all(v.startswith(("data:", "#")) for v in found.loads), found.loads
    assert not re.search(r"@import|url\(\s*['\"]?(?!#|data:)", " ".join(found.styles))
    assert "default-src 'none'" in text
    return found
