"""What a message means and what to do, taken from its own words; for messages without a remedy, from their kind."""

import re

from docs.site.messages import Message

VERBS = (
    "add|allowed|append|call|change|check|choose|compute|convert|copy|crop|decorate|delete|did|do|download|evaluate|fetch"
    "|fill|fine-tune|give|hand|install|leave|load|lower|look|make|mend|move|must|name|normalise|one|optimize|pip|point"
    "|put|raise|remove|rename|resume|save|set|start|take|train|try|unlabeled|use|wait|widen|write"
)
VERB = "|".join([VERBS, "run (?!=)", "the same command", "the command that", r"timm\.list_models", "health=watch"])
LEAD = "(?:on a CPU |if it is |to |it )?"
STARTS = re.compile(rf"(?:[;:.] |, (?:or )?)(?={LEAD}(?:{VERB})\b(?![=.:]))")
FIRST = re.compile(rf"^(?:{VERB})\b(?![=.:])")

# What the words of a message say of its kind: what such messages mean, and what to do where they do not say it.
KINDS = (
    (
        "no such (key|option|kind)",
        "The name is none of this command, nor of the choices that were made.",
        "Give the name that the message proposes; `--help` and [the keys](../keys.md) list all.",
    ),
    (
        "has no default|nothing says what|does not say|names no _target_",
        "Something that is needed was not given.",
        "Give the key that the message names.",
    ),
    (
        "not installed|is read by the package",
        "A package is missing that only this feature needs.",
        "Install it with the command in the message.",
    ),
    (
        "cannot be written|cannot be kept",
        "The file system refuses the file: no room, no right to write, or a path that no file can have.",
        "Make room, or give another place.",
    ),
    (
        "no such (file|folder)|does not exist|is gone|there is no .* in it|is not beside it|cannot be found",
        "The path or name is not there, seen from the folder in which the command was typed.",
        "Check the spelling, and that the path starts from the folder in which the command is typed.",
    ),
    (
        "damaged|cut short|cannot be (read|decoded)|do not match their checksums|no UTF-8|is no CSV|is not a parquet"
        "|not a file of|holds no state_dict|is no configuration of a run|is no table",
        "A file is not as it was written (copied in part, overwritten, of another kind), or may not be read.",
        "Copy or make the file again, and see that you may read it.",
    ),
    (
        "did you mean|no such|unknown|is not known|knows no such",
        "The name is none of those that are known.",
        "Give one of the names that are known; `--help` lists the choices.",
    ),
    (
        "(has|have|are) no label|no labelled|has a label|needs? .*labelled|only .*labelled|are unlabelled",
        "The step works with labels, and the images have none, or too few.",
        "Give `data=…` whose images have labels.",
    ),
    (
        "not finite|diverged|infinite|overflow",
        "Numbers grew beyond what the precision holds.",
        "Lower the learning rate, or give `trainer.precision=32-true`.",
    ),
    (
        "does not fit the|another (network|backbone)|of other weights|was made with",
        "The file belongs to another network, or to other settings, than those that were given.",
        "Give the network or the settings with which the file was made.",
    ),
    (
        "is there already|is there,|was begun|holds (a|another|an) (pack|search|run|network)",
        "What is there already would be overwritten or mixed.",
        "Give another place, or remove what is there.",
    ),
    (
        "a multiple of|does not divide",
        "Two sizes belong together: one must be a multiple of the other.",
        "Change one of the two numbers.",
    ),
    (
        "fit into the memory|lack of memory|GiB",
        "The memory of the machine or of the device does not suffice.",
        "Give a smaller batch; see [GPU memory](../guides/gpu_memory.md).",
    ),
    (
        "all-reduce|MASTER_PORT|srun|process (0|‹)",
        "The processes of a run do not find or hear each other.",
        "Look for the first process that names a cause; [clusters](../clusters.md) says how to start them.",
    ),
    (
        "evaluated on other|evaluated with other|no protocol is in both",
        "The runs cannot be compared: their evaluations are not of the same images, labels or protocol.",
        "Evaluate both again in the same way.",
    ),
    (
        "downloaded|offline",
        "Something must be fetched, and the network does not give it.",
        "Fetch it where there is a network, and give its path.",
    ),
    (
        "must|allowed|is not one of|is neither|needs? |takes? |at (least|most)|is for|no more than|outside|between"
        "|there are only",
        "The value is outside of what is possible here.",
        "Give a value that the message allows.",
    ),
)
DEFAULTS = {
    "error": "Change what the message names: the key, the file or the argument at its beginning.",
    "reason": "It stands within another message, which names the file or the image: mend or replace that.",
    "finding": "See the table of [the health monitor](../health.md).",
    "check": "The run starts all the same; change the setting if it was not meant.",
    "warning": "The command goes on; read it before you believe its numbers.",
    "note": "Nothing: it is for information.",
}


def parts(message: Message) -> tuple[str, str]:
    """The problem and the remedy that a message itself gives; ``""`` for a remedy that it does not give."""
    if message.remedy:
        return message.text, message.remedy
    if FIRST.match(message.text):
        return "", message.text
    found = STARTS.search(message.text)
    if found:
        return message.text[: found.start()], message.text[found.end() :]
    hint = text_after_semicolon(message.text)
    if hint and message.kind == "error":
        return message.text[: -len(hint) - 2], hint
    choice = re.search(r"is not one of (.+)|is neither (.+) nor (.+)", message.text)
    if choice:
        return message.text, f"give {choice[1] or f'{choice[2]} or {choice[3]}'}"
    must = re.search(r"(?<!some )(?<!they )\b(must|needs?|takes) (?!no\b)(.+)", message.text)
    return message.text, f"it {must[1]} {must[2]}".replace("it need ", "it needs ") if must else ""


def text_after_semicolon(text: str) -> str:
    """The last clause, where it has words of its own: mostly a hint."""
    last = text.rpartition("; ")[2] if "; " in text else ""
    return last if len(re.findall(r"[a-z]{2,}", re.sub("‹[^›]*›", "", last))) > 2 and last[0] != "‹" else ""


def meaning(message: Message) -> str:
    """What a message means beyond its words; ``""`` where they say all."""
    if message.meaning or message.kind == "note":
        return _sentence(message.meaning)
    row = _row(message) if message.kind != "reason" else None
    return row[1] if row else ""


def remedy(message: Message) -> str:
    """What to do, a sentence."""
    own = parts(message)[1]
    if own:
        return _sentence(own)
    row = _row(message) if message.kind == "error" else None
    return row[2] if row else DEFAULTS[message.kind]


def _row(message: Message) -> tuple[str, str, str] | None:
    return next((row for row in KINDS if re.search(row[0], message.text)), None)


def _sentence(text: str) -> str:
    text = text.strip().removeprefix("(").rstrip(";,")
    keys = re.match(r"[\w.]+[=:]|\w+\.\w|‹|unlabeled |pip ", text)
    return "" if not text else (text if keys else text[0].upper() + text[1:]) + ("" if text[-1] in ".?!…" else ".")
