"""Formats the report of ``unlabeled.commands.inspect``: the same markdown in the terminal and in the file."""

from collections.abc import Iterable
from typing import Any

from unlabeled.core.escaping import in_markdown
from unlabeled.data.inspect.perceptual import SIDE
from unlabeled.data.lists.left_out import lines


def format_report(report: dict[str, Any], most: int) -> str:
    """Formats the contents of ``inspect.json`` as markdown; shows the first ``most`` entries of each list."""
    parts = [f"# {in_markdown(report['data'])}"]
    parts += _description(report)
    parts += [part for name, split in report["splits"].items() for part in _split(name, split, most)]
    parts += _exact(report["duplicates"]["exact"], "test" in report["splits"], most)
    parts += _near_duplicates(report["duplicates"]["near"], report["settings"]["near_distance"], report["splits"], most)
    parts += [_normalisation(report["normalisation"]), _speed(report["speed"], report["splits"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _description(report: dict[str, Any]) -> list[str]:
    """Describes how the data set was read, and which parts of it are not used."""
    rows = [f"- {each}" for each in report["understood"]]
    rows += [f"- left out: {each}" for each in lines(report["left_out"])]
    rows += [f"- damaged: {each}" for each in report["damaged"]]
    rows += [f"- **warning**: {each}" for each in report["warnings"]]
    return ["\n".join(rows)]


def _split(name: str, split: dict[str, Any], most: int) -> list[str]:
    checked = "" if split["looked_at"] == split["images"] else f", {split['looked_at']:,} of them checked"
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in split["kinds"].items())
    lines = [
        f"- files: {split['stored_bytes'] / 1e6:,.1f} MB; {kinds}",
        *_sizes(split),
        *_classes(split["classes"], most),
    ]
    if split["plain"]["count"]:
        lines.append(f"- {split['plain']['count']:,} images are too plain to be compared as near duplicates")
    lines.append(f"- corrupt: {len(split['corrupt']):,}")
    lines += _shorten((f"  - {in_markdown(each['reason'])}" for each in split["corrupt"]), len(split["corrupt"]), most)
    return [f"## {name}: {split['images']:,} images{checked}", "\n".join(lines)]


def _sizes(split: dict[str, Any]) -> list[str]:
    if split["height"] is None:
        return []
    sides = (f"{side} {_spread(split[side])}" for side in ("height", "width"))
    aspects = ", ".join(f"{name} {count:,}" for name, count in split["aspect"].items() if count)
    return [
        f"- sizes (min, median, max): {', '.join(sides)} pixels;"
        f" shorter side below image_size={split['image_size']}: {split['smaller']:.2%}",
        f"- width : height: {aspects}",
    ]


def _spread(values: dict[str, float]) -> str:
    return " / ".join(f"{values[key]:g}" for key in ("min", "median", "max"))


def _classes(classes: dict[str, Any] | None, most: int) -> list[str]:
    if classes is None:
        return ["- no labels"]
    ratio = "" if classes["imbalance"] is None else f", largest : smallest {classes['imbalance']:.3g}"
    line = f"- {len(classes['counts'])} classes of {_spread(classes)} images (min, median, max){ratio}"
    empty = classes["empty"]
    named = ", ".join(map(in_markdown, empty[:most])) + (", …" if len(empty) > most else "")
    return [
        f"{line}; {classes['unlabelled']:,} images without a label",
        *([f"- {len(empty):,} classes without an image: {named}"] if empty else []),
    ]


def _exact(exact: dict[str, Any], test: bool, most: int) -> list[str]:
    repeated, groups = exact["repeated"], exact["groups"]
    across = f", {repeated['test']:,} in test; {repeated['train and test']:,} test images are in train" if test else ""
    line = (
        f"Images with the same pixels as an earlier one of their split: {repeated['train']:,} in train{across}."
        f" {len(groups):,} pictures occur more than once, {exact['conflicts']:,} of them with two labels."
    )
    rows = (f"- {_flag(group)}{' = '.join(map(_image, group['images'][:10]))}" for group in groups)
    return ["## Exact duplicates", line, "\n".join(_shorten(rows, len(groups), most))]


def _near_duplicates(near: dict[str, Any] | None, distance: int | None, splits: dict[str, Any], most: int) -> list[str]:
    if near is None:
        return []
    counts, listed = near["pairs"], near["listed"]
    across = f", {counts['test']:,} within test, {counts['train and test']:,} between them" if "test" in splits else ""
    line = (
        f"Pairs with different pixels whose perceptual hashes differ in at most {distance} of 64 bits:"
        f" {counts['train']:,} within train{across}; {near['conflicts']:,} of all pairs have two labels."
    )
    if "test" in splits and splits["test"]["decoded"]:
        share = near["test_images"] / splits["test"]["decoded"]
        line += f" {near['test_images']:,} test images ({share:.2%}) are similar to an image of train, but not equal."
    if max([split["height"]["median"] for split in splits.values() if split["height"]] or [SIDE]) < SIDE:
        line += f" For images smaller than {SIDE} pixels the hash is unreliable: check the picture."
    ordered = sorted(listed, key=lambda pair: pair["images"][0]["split"] == pair["images"][1]["split"])
    rows = (f"- {_flag(pair)}{' ~ '.join(map(_image, pair['images']))}, {pair['bits']} bits" for pair in ordered)
    return ["## Near duplicates", line, "\n".join(_shorten(rows, sum(counts.values()), most))]


def _image(image: dict[str, Any]) -> str:
    label = "" if image["class"] is None else f" ({in_markdown(image['class'])})"
    return f"{image['split']} {in_markdown(image['name'])}{label}"


def _flag(found: dict[str, Any]) -> str:
    return "**two labels**: " if found["conflict"] else ""


def _shorten(rows: Iterable[str], total: int, most: int) -> list[str]:
    shown = [row for _, row in zip(range(most), rows, strict=False)]
    return shown + ([f"- … {total - len(shown):,} more"] if total > len(shown) else [])


def _normalisation(found: dict[str, Any]) -> str:
    if found["mean"] is None:
        return ""
    mean, std = (", ".join(f"{value:.4f}" for value in found[key]) for key in ("mean", "std"))
    return f"## Channels of train, for views\n\n```yaml\nmean: [{mean}]\nstd: [{std}]\n```"


def _speed(speed: dict[str, Any], splits: dict[str, Any]) -> str:
    if not speed["images"]:
        return ""
    what = "of files" if speed["encoded"] else "of pixels"
    gib = splits["train"]["decoded_bytes"] / splits["train"]["looked_at"] * splits["train"]["images"] / 2**30
    return (
        f"## Decoding\n\nOne process decodes {speed['images_per_second']:,.0f} images/s,"
        f" {speed['megabytes_per_second']:,.1f} MB/s {what} ({speed['images']} images of train, read just before)."
        f" For {speed['wanted']:,g} images/s give num_workers={speed['workers']}. Kept decoded, train needs"
        f" {gib:.3g} GiB of memory (memory_gib). This took {speed['seconds']:.0f} s."
    )
