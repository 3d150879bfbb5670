"""What mkdocs.yml cannot say: README and CONTRIBUTING are pages too.

As a script it writes configuration.md from the dataclasses: python docs/pages.py
"""

import dataclasses
import inspect
import io
import re
import tokenize
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md"}
CONFIGURATION = ROOT / "docs/configuration.md"

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)]+)\)")
_INTRODUCTION = """# Configuration

Every tunable is a field of `ssd_jax/config.py` and a flag: `--config.train.batch_size=64`. A file
in `configs/` is a function `get_config()` that returns a `Config`; the flags come on top. What a
run was made with is in its `config.json`.

*Written by `python docs/pages.py` from the dataclasses.*
"""


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that lie beside `docs/`, for mkdocs."""
    from mkdocs.structure.files import File

    for page, source in PAGES.items():
        text = rewrite((ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links out of `docs/`, which the site does not have, are plain text there; for mkdocs."""
    return _LINK.sub(
        lambda link: f"`{link['target'][3:]}`" if link["target"].startswith("../") else link[0],
        markdown,
    )


def rewrite(text: str) -> str:
    """Links of a page at the root, as they are in the site; those into the code are plain text."""

    def replace(link: re.Match[str]) -> str:
        target = link["target"]
        if "://" in target or target.startswith("#"):
            return link[0]
        if target.startswith("docs/"):
            return f"{link['image']}[{link['text']}]({target.removeprefix('docs/')})"
        pages = {source: page for page, source in PAGES.items()}
        return f"[{link['text']}]({pages[target]})" if target in pages else f"`{target}`"

    return _LINK.sub(replace, text)


def configuration() -> str:
    """The page of all fields: each with its type, its default and the comment behind it."""
    from ssd_jax import config

    parts = [_INTRODUCTION, _section("", config.Config)]
    for field in dataclasses.fields(config.Config):
        if dataclasses.is_dataclass(field.type):
            parts.append(_section(field.name, field.type))
    return "\n".join(parts)


def _section(name: str, kind: Any) -> str:
    prefix = f"config.{name}." if name else "config."
    comments, defaults = _comments(kind), kind()
    rows = [
        f"| `{prefix}{field.name}` | {_type(field.type)} | {_shown(getattr(defaults, field.name))} "
        f"| {comments[field.name]} |"
        for field in dataclasses.fields(kind)
        if not dataclasses.is_dataclass(field.type)
    ]
    title = [f"## {name}", "", inspect.getdoc(kind), ""] if name else []
    return "\n".join([*title, "| field | type | default | |", "|---|---|---|---|", *rows, ""])


def _type(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)


def _shown(value: Any) -> str:
    return f"`{value!r}`" if value not in ("", ()) else "empty"


def _comments(kind: Any) -> dict[str, str]:
    """The comment of each field: the lines above it, and what stands behind it."""
    found: dict[str, str] = {}
    above: list[str] = []
    field = ""
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(kind)).readline):
        text = token.string.lstrip("# ")
        if token.type == tokenize.COMMENT and token.line.strip().startswith("#"):
            above.append(text)
        elif token.type == tokenize.COMMENT:
            found[field] = " ".join([*found[field].split(), *text.split()])
        elif (match := re.match(r"    (\w+): ", token.line)) and match[1] not in found:
            field = match[1]
            found[field], above = " ".join(above), []
    return found


if __name__ == "__main__":
    CONFIGURATION.write_text(configuration(), encoding="utf-8")
