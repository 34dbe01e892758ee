"""Escapes text from files, so that it is safe in a terminal, on a Markdown page or in a spreadsheet.

File names, class names and texts in a report or checkpoint may contain any bytes. None of them may move a terminal's
cursor, be read as HTML, load a picture, act as a formula, or fail to be encoded.
"""

import re
import shlex
from collections.abc import Iterable

# Control characters, line and paragraph separators, marks of writing direction, and lone surrogates, which is
# how Python represents bytes in a file name that are not UTF-8.
_ODD = re.compile("[\0-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_OPENS = re.compile("<(?! )")  # what may be a tag
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def escaped(text: object) -> str:
    """Returns one printable line: odd characters as ``\\n``, ``\\x1b``, ``\\u202e``, non-UTF-8 bytes as ``\\xe9``."""
    return _ODD.sub(_escaped, str(text))


def _escaped(odd: re.Match[str]) -> str:
    code = ord(odd[0])
    if 0xDC80 <= code <= 0xDCFF:  # os.fsdecode
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if 0xD800 <= code <= 0xDFFF else odd[0].encode("unicode_escape").decode()


def in_markdown(text: object) -> str:
    """Returns the text as :func:`escaped` does, escaped so that Markdown makes no HTML, link or picture of it.

    ``<`` before a space opens nothing (CommonMark 0.31, section 6.6), and stays for those who read the plain file.
    """
    return _OPENS.sub("&lt;", escaped(text)).replace("](", "]\\(")


def in_table(text: object) -> str:
    """Returns the text as :func:`in_markdown` does, for a cell of a table."""
    return in_markdown(text).replace("|", "\\|")


def in_csv(text: object) -> str:
    """Returns the text as :func:`escaped` does, with an apostrophe before formulas; numbers stay as they are."""
    line = escaped(text)
    return f"'{line}" if is_formula(line) else line


def is_formula(text: str) -> bool:
    """Checks whether a spreadsheet would compute a cell; numbers are none."""
    return text.startswith(_FORMULA) and not _is_number(text)


def for_shell(words: Iterable[str]) -> str:
    """Returns a command that bash and zsh read as these words; odd characters are escaped, so it can be printed."""
    return " ".join(map(_word, words))


def _word(word: str) -> str:
    if not _ODD.search(word):
        return shlex.quote(word)
    plain = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{_ODD.sub(_as_bytes, plain)}'"


def _as_bytes(odd: re.Match[str]) -> str:
    of_a_name = "\udc80" <= odd[0] <= "\udcff"  # os.fsdecode
    return "".join(f"\\x{byte:02x}" for byte in odd[0].encode("utf-8", "surrogateescape" if of_a_name else "replace"))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
