"""Checks README and docs: links, anchors and images resolve, commands parse, Python runs, JSON is valid.

    python docs/check.py

`problems()` returns what is wrong, one line each. Nothing is executed but fenced `python` blocks; commands are only
parsed, by the parsers of the installed console scripts. It also finds settings, options of trainers' names and public
names of the library that the reference leaves out. A comment on the line before a block changes what is done with it:

    <!-- check: compile -->   Python is compiled and not run
    <!-- check: skip -->      the block is left alone
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS / "_ext"))

from command_reference import label_of  # noqa: E402
from console import installed_scripts, own_scripts, parse  # noqa: E402

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|:{3,})(?P<info>.*)$")
_LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^)\s]+)\)")
_IMAGE = re.compile(r"!\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_LABEL = re.compile(r"^\((?P<label>[^)]+)\)=$", re.MULTILINE)
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z_0-9]*=.*", re.DOTALL)
_OWN_TRAINER = re.compile(r"nnUNetTrainer(?:Deferral\d?|MultiRater)\w*")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines, where it begins, and what its comment asks for."""

    language: str
    text: str
    line: int
    mark: str


@dataclass(frozen=True)
class Page:
    """A Markdown file, with its prose (blocks left out) and its blocks."""

    file: Path
    prose: str
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        """The path below the repository."""
        return str(self.file.relative_to(ROOT))

    @property
    def anchors(self) -> set[str]:
        """What can stand after `#`: headings as GitHub and MyST slug them, and explicit labels."""
        headings = re.findall(r"^#{1,6} +(.+?)\s*$", self.prose, re.MULTILINE)
        return {_slug(heading) for heading in headings} | set(_LABEL.findall(self.prose))


def pages() -> list[Page]:
    """README, SECURITY and all pages of the docs."""
    found = (file for file in sorted(DOCS.rglob("*.md")) if "_build" not in file.relative_to(DOCS).parts)
    return [read_page(file) for file in (ROOT / "README.md", ROOT / "SECURITY.md", *found)]


def read_page(file: Path) -> Page:
    """Split a file into prose and blocks; the content of directives such as cards and grids is prose."""
    prose: list[str] = []
    blocks: list[Block] = []
    lines = file.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        match = _FENCE.match(lines[at])
        if match is None or match["fence"].startswith(":"):
            prose.append(lines[at])
            at += 1
            continue
        end = next((n for n in range(at + 1, len(lines)) if lines[n].strip() == match["fence"]), len(lines))
        before = lines[at - 1].strip() if at else ""
        mark = re.fullmatch(r"<!-- check: (\w+) -->", before)
        language = match["info"].strip()
        body = [line.removeprefix(match["indent"]) for line in lines[at + 1 : end]]
        blocks.append(Block(language, "\n".join(body), at + 1, mark[1] if mark else ""))
        prose.append("")
        at = end + 1
    return Page(file, "\n".join(prose), tuple(blocks))


def problems() -> list[str]:
    """Everything that is wrong, one line each, beginning with the file."""
    found = pages()
    labels = {label for page in found for label in _LABEL.findall(page.prose)}
    labels |= {label_of(script) for script in own_scripts()}
    by_file = {page.file: page for page in found}
    wrong: list[str] = []
    for page in found:
        wrong += [f"{page.name}: {problem}" for problem in _links(page, by_file, labels)]
        for block in page.blocks:
            if block.mark != "skip":
                wrong += [f"{page.name}:{block.line}: {problem}" for problem in _block_problems(block)]
    return wrong + list(_left_out(by_file))


def _links(page: Page, by_file: dict[Path, Page], labels: set[str]) -> Iterator[str]:
    prose = re.sub(r"`[^`\n]*`", "", page.prose)
    for target in (match["target"] for match in _IMAGE.finditer(prose)):
        if not target.startswith("http") and not (page.file.parent / target).is_file():
            yield f"there is no image {target}"
    for target in (match["target"] for match in _LINK.finditer(prose)):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        if not path:
            if anchor not in labels | page.anchors:
                yield f"there is no target #{anchor}"
            continue
        file = (page.file.parent / path).resolve()
        if not file.is_file():
            yield f"there is no file {path}"
        elif anchor and (file not in by_file or anchor not in by_file[file].anchors):
            yield f"{path} has no anchor #{anchor}"


def _block_problems(block: Block) -> Iterator[str]:
    if block.language in ("bash", "sh", "console"):
        yield from _shell_problems(block.text)
    elif block.language.startswith("{code-cell}"):
        first, _, rest = block.text.partition("\n")
        if first.startswith("%%bash"):
            yield from _shell_problems(rest)
        else:
            yield from _python_problems(re.sub(r"^%.*$", "", block.text, flags=re.MULTILINE), run=False)
    elif block.language == "python":
        yield from _python_problems(block.text, run=block.mark != "compile")
    elif block.language == "json":
        try:
            json.loads(block.text)
        except ValueError as error:
            yield f"JSON is not valid: {error}"


def _shell_problems(text: str) -> Iterator[str]:
    for line in re.sub(r"\\\n", " ", text).splitlines():
        words = shlex.split(_without_shell(line), comments=True)
        while words and _ASSIGNMENT.fullmatch(words[0]):
            words.pop(0)
        if not words or not words[0].startswith("nnUNetv2_"):
            continue
        script, arguments = words[0], words[1:]
        if script not in installed_scripts():
            yield f"there is no command {script}"
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                parse(script, arguments)
        except ValueError as error:
            yield f"{script}: {error}"
        yield from (
            problem for word in arguments if _OWN_TRAINER.fullmatch(word) for problem in _trainer_problems(word)
        )


def _without_shell(line: str) -> str:
    """A command line without what only the shell reads: substitutions, redirections and what is piped on."""
    line = re.sub(r"\$\([^)]*\)", "SUBSTITUTED", line)
    line = re.sub(r"\$\w+", "1", line)
    return re.sub(r"\s(?:\d?>|\||&&).*$", "", line)


def _trainer_problems(name: str) -> Iterator[str]:
    from nnunetv2_deferral.nnunet import multi_rater_naming, naming

    find = multi_rater_naming.multi_rater_class if "MultiRater" in name else naming.trainer_class
    try:
        find(name)
    except (AttributeError, ValueError) as error:
        # What a page defines itself (own trainers) carries no number and no option.
        if re.search(r"Deferral(\d|_)|MultiRater_", name):
            yield f"no trainer {name}: {error}"


def _python_problems(text: str, *, run: bool) -> Iterator[str]:
    try:
        code = compile(text, "block", "exec")
    except SyntaxError as error:
        yield f"Python does not compile: {error}"
        return
    if not run:
        return
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        try:
            exec(code, {"__name__": "block"})  # noqa: S102 - our own pages
        except Exception as error:  # whatever it is, it is wrong on the page
            yield f"Python fails: {type(error).__name__}: {error}"
        finally:
            os.chdir(here)


def _left_out(by_file: dict[Path, Page]) -> Iterator[str]:
    """What exists and is not on the page that should have all of it."""
    import nnunetv2_deferral
    from nnunetv2_deferral.nnunet import multi_rater_naming, naming
    from nnunetv2_deferral.settings import DeferralSettings

    everything = {
        "settings.md": {field.name for field in fields(DeferralSettings)} | {"num_experts"},
        "trainers.md": {f"_{option}" for option in (*naming.OPTIONS, *multi_rater_naming.OPTIONS)},
        "api.md": set(getattr(nnunetv2_deferral, "__all__", ())),
    }
    for name, expected in everything.items():
        file = DOCS / "reference" / name
        text = file.read_text(encoding="utf-8")
        missing = sorted(each for each in expected if not re.search(rf"(?<!\w){re.escape(each)}(?!\w)", text))
        if missing:
            yield f"{by_file[file].name}: says nothing of {', '.join(missing)}"


def _slug(heading: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def main() -> None:
    """Print what is wrong; exit code 1 if anything is."""
    found = problems()
    print("\n".join(found) or "Links, commands, code and JSON of README and docs are in order.")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
