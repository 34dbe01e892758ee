"""What MkDocs calls: pages that are made from the source, links of the repository, and a list of pages without gaps."""

import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.site import api, troubleshooting, yamls
from docs.site.nav import filled
from docs.site.repository import ROOT, pages_elsewhere, with_blank_lines, with_links

NAMELESS = re.compile(r"<th([^>]*)></th>")
ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):(?=<code>)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is no file below ``docs/``, then fills the patterns of ``nav``."""
    for path, place in pages_elsewhere().items():
        content = (ROOT / path).read_bytes()
        files.append(File.generated(config, place, content=content.decode() if path.endswith(".md") else content))
    for place, text in (troubleshooting.pages() | yamls.pages() | api.pages()).items():
        files.append(File.generated(config, place, content=text))
    config.nav = filled(config.nav, [file.src_uri for file in files.documentation_pages()])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes links of the repository lead to pages."""
    elsewhere = pages_elsewhere()
    sources = {place: path for path, place in elsewhere.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return with_blank_lines(with_links(markdown, source, elsewhere))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Takes the names of Sphinx' roles out of docstrings; a corner of a table without a name is no heading."""
    return NAMELESS.sub(r"<td\1></td>", ROLE.sub("", html))
