"""Builds the documentation site, with every warning of MkDocs, dead link and request to another host as an error.

python -m docs.site.build [FOLDER]      needs pip install -e ".[docs]"; FOLDER is site/ unless given
"""

import logging
import os
import sys
import time
from pathlib import Path

from docs.site.check import problems
from docs.site.repository import ROOT

CONFIG = Path(__file__).with_name("mkdocs.yml")


def build(folder: Path) -> list[str]:
    """Writes the site, and returns a line for each thing that is wrong with it.

    Raises:
        mkdocs.exceptions.Abort: MkDocs has warned of something, which it has printed.
    """
    os.environ.setdefault("NO_MKDOCS_2_WARNING", "1")
    from mkdocs.commands import build as mkdocs_build
    from mkdocs.config import load_config

    said = logging.StreamHandler()  # MkDocs counts its warnings, and leaves it to its command line to print them
    said.setLevel(logging.WARNING)
    logging.getLogger("mkdocs").addHandler(said)
    config = load_config(str(CONFIG), site_dir=str(folder), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    mkdocs_build.build(config)
    config.plugins.on_shutdown()
    return problems(folder)


def main() -> None:
    started = time.monotonic()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site").resolve()
    found = build(folder)
    print("\n".join(found), file=sys.stderr)
    print(f"{folder}: {len(list(folder.rglob('*.html')))} pages in {time.monotonic() - started:.0f} s")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
