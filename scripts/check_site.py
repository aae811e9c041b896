"""Refuse a built site with links that lead nowhere, or with parts that come over the network.

`python scripts/check_site.py site`
"""

import re
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("object", "data")}
LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "manifest"}


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it.

    Args:
        text: of the page.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        found = {name: value for name, value in attrs if value is not None}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and LOADED_LINKS & set(found.get("rel", "").split()):
            self.loaded.append(found["href"])
        self.loaded += [value for name, value in found.items() if (tag, name) in LOADED]


@cache
def page_of(file: Path) -> Page:
    return Page(file.read_text(encoding="utf-8"))


def problems_of(site: Path) -> Iterator[str]:
    """One line for each link or part that is wrong."""
    for file in sorted(site.rglob("*.html")):
        if file.name == "404.html":  # its links are of the address that the site is served at
            continue
        page, name = page_of(file), file.relative_to(site)
        yield from (f"{name} loads {target}" for target in page.loaded if urlsplit(target).netloc)
        for target in (*page.links, *page.loaded):
            problem = problem_of(target, file, site)
            if problem is not None:
                yield f"{name} links to {target}, {problem}"
    for file in sorted(site.rglob("*.css")):
        targets = re.findall(r"url\([\"']?(https?:[^)\"']*)", file.read_text(encoding="utf-8"))
        yield from (f"{file.relative_to(site)} loads {target}" for target in targets)


def problem_of(target: str, file: Path, site: Path) -> str | None:
    """What is wrong with a link of a page; None: nothing, or it leads out of the site by an address."""
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return None
    goal = (file.parent / unquote(parts.path)).resolve() if parts.path else file.resolve()
    goal = goal / "index.html" if goal.is_dir() else goal
    if not (goal.is_file() and goal.is_relative_to(site.resolve())):
        return "which is not there"
    if parts.fragment and goal.suffix == ".html" and unquote(parts.fragment) not in page_of(goal).places:
        return "a place that is not on that page"
    return None


if __name__ == "__main__":
    found = list(problems_of(Path(sys.argv[1])))
    print("\n".join(found) or "Every link of the site leads somewhere, and nothing is loaded over the network.")
    sys.exit(bool(found))
