"""What the pages tell readers to type works, and prints what they show.

Every command of a ```console block (lines that begin with `$ `) and every ```python block is run,
page by page, in a folder that looks like a fresh clone after `make demo`. Lines below a command are
what it prints: `...` stands for anything, numbers with a point may differ in their last digit, and
`# exit 1` after a command is the exit code that it must end with. What is only an illustration is
```sh, ```text, ```toml, ```yaml or ```json. `<!-- file: NAME -->` before a block saves it for the
blocks after it.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from purify_audit.gate.policy import read_policy
from purify_audit.spec.project_file import open_project, project_settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
AS_IN_A_CLONE = ("models", "examples")
ILLUSTRATIONS = ("sh", "text", "yaml", "json")
LEAST_RUN = 20

_FENCE = re.compile(r"^( *)```(\S*)\s*$")
_FILE = re.compile(r"^<!-- file: (\S+) -->$")
_ENDS = re.compile(r"\s+# exit (\d+)$")
_ANYTHING_OR_NUMBER = re.compile(r"(\.\.\.|\d+\.\d+)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, line, and the name under which it is saved, if any."""

    language: str
    text: str
    line: int
    file: str | None = None


@dataclass(frozen=True)
class Command:
    """A command, the exit code it must end with, and what it must print, if that is shown."""

    line: str
    code: int
    output: str


def blocks(text):
    """Every fenced block of a page, in order."""
    found, opened, name, lines = [], None, None, []
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None:
            if fence:
                opened, lines = (number, fence[2], len(fence[1])), []
            elif line.strip():
                named = _FILE.match(line)
                name = named[1] if named else None
        elif fence and not fence[2]:
            start, language, indent = opened
            body = "".join(f"{row[indent:]}\n" for row in lines)
            found.append(Block(language, body, start, name))
            opened = name = None
        else:
            lines.append(line)
    assert opened is None, "a block is not closed"
    return found


def commands(block):
    """The commands of a console block, with what each must print."""
    parts = re.split(r"^\$ ", block.text.replace("\\\n", ""), flags=re.MULTILINE)
    assert not parts[0].strip(), f"line {block.line}: a console block begins with `$ `"
    found = []
    for part in parts[1:]:
        line, _, output = part.partition("\n")
        ends = _ENDS.search(line)
        found.append(Command(_ENDS.sub("", line), int(ends[1]) if ends else 0, output))
    return found


def agrees(shown, printed):
    """Whether what a page shows is what a command printed."""
    shown, printed = (
        "\n".join(line.rstrip() for line in text.strip().splitlines()) for text in (shown, printed)
    )
    pattern, numbers = "", []
    for part in _ANYTHING_OR_NUMBER.split(shown.replace(" ...", "...")):
        if part == "...":
            pattern += r"(?:.|\n)*?"
        elif _ANYTHING_OR_NUMBER.fullmatch(part):
            pattern += rf"(\d+\.\d{{{len(part.partition('.')[2])}}})(?!\d)"
            numbers.append(part)
        else:
            pattern += re.escape(part)
    match = re.fullmatch(pattern, printed)
    return match is not None and all(
        abs(float(a) - float(b)) <= 2.01 * 10 ** -len(a.partition(".")[2])
        for a, b in zip(numbers, match.groups())
    )


def run_shell(line, folder):
    """(exit code, what a reader sees: standard output, then the program's messages)."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        line,
        shell=True,
        cwd=folder,
        env=os.environ | {"PATH": path, "COLUMNS": "80", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    messages = re.findall(r"^(?:purify-audit: |Traceback)(?:.|\n)*", ended.stderr, re.MULTILINE)
    return ended.returncode, ended.stdout + "".join(messages)


def run_console(block, folder):
    """Run a console block; how many commands it has."""
    todo = commands(block)
    for command in todo:
        code, printed = run_shell(command.line, folder)
        where = f"line {block.line}: `{command.line}`"
        assert code == command.code, f"{where} ends with {code}, not {command.code}:\n{printed}"
        if command.output.strip():
            assert agrees(command.output, printed), f"{where} prints\n{printed}"
    return len(todo)


def run_python(block, folder):
    """Run a block of Python by itself."""
    code, printed = run_shell(f"{sys.executable} - <<'END'\n{block.text}\nEND\n", folder)
    assert code == 0, f"line {block.line}: {printed}"
    return 1


def check_toml(block, folder):
    """It is TOML; and where it is for this program, a policy or settings that can be used."""
    table = tomllib.loads(block.text)
    inside = table.get("tool", {}).get("purify-audit")
    known = inside if inside is not None else table if "gate" in table else None
    if known is None:
        return
    name = "pyproject.toml" if inside is not None else "purify-audit.toml"
    (folder / "check").mkdir(exist_ok=True)
    path = folder / "check" / name
    path.write_text(block.text, encoding="utf-8")
    if "gate" in known:
        read_policy(path, folder)
    else:
        project_settings(open_project(path))


def run_page(text, folder):
    """Do what a page says, in order; how many commands and programs were run."""
    ran = 0
    for block in blocks(text):
        if block.language == "toml":
            check_toml(block, folder)
        if block.file is not None:
            if block.language == "python":
                compile(block.text, block.file, "exec")
            path = folder / block.file
            assert path.resolve().is_relative_to(folder.resolve()), "outside the folder"
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "console":
            ran += run_console(block, folder)
        elif block.language == "python":
            ran += run_python(block, folder)
    return ran


def to_run(text):
    """How many commands and programs a page has."""
    found = blocks(text)
    consoles = sum(len(commands(b)) for b in found if b.language == "console")
    return consoles + sum(b.language == "python" and b.file is None for b in found)


def title(page):
    return str(page.relative_to(ROOT))


@pytest.fixture
def clone(tmp_path):
    """A folder like a fresh clone after `make demo`, as far as pages need it."""
    for name in AS_IN_A_CLONE:
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.mark.parametrize("page", [p for p in PAGES if to_run(p.read_text("utf-8"))], ids=title)
def test_what_a_page_says_to_run_runs(page, clone):
    text = page.read_text(encoding="utf-8")
    assert run_page(text, clone) == to_run(text)


def test_enough_is_run():
    assert sum(to_run(page.read_text(encoding="utf-8")) for page in PAGES) >= LEAST_RUN


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_blocks_are_what_they_say(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    found = blocks(text)
    for block in found:
        where = f"{title(page)}, line {block.line}"
        assert block.language in (*ILLUSTRATIONS, "console", "python", "toml"), where
        if block.language == "toml":
            check_toml(block, tmp_path)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            list(pytest.importorskip("yaml").safe_load_all(block.text))
        if block.file is not None:
            rest = "".join(b.text for b in found if b.line > block.line)
            assert f"`{block.file}`" in text, f"{where}: the reader is not told its name"
            assert Path(block.file).stem in rest or "gate" in rest, f"{where}: saved and not used"


# What the tests above rest on.


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("0.562 ±0.052", "0.563 ±0.051", True),
        ("0.562", "0.565", False),
        ("0.562", "0.5620", False),
        ("8 images", "9 images", False),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nb\nc\n", False),
        ("a   \n\n", "\na", True),
        ("a", "a\nb", False),
        ("(... s, 6,080 evaluations)", "(6 s, 6,080 evaluations)", True),
    ],
)
def test_what_agrees(shown, printed, same):
    assert agrees(shown, printed) is same


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("$ echo one\ntwo\n", r"prints\s+one"),
        ("$ false\n", "ends with 1, not 0"),
        ("$ true   # exit 3\n", "ends with 0, not 3"),
        ("echo one\n", "begins with"),
    ],
)
def test_a_page_that_is_wrong_is_told(body, complaint, tmp_path):
    with pytest.raises(AssertionError, match=complaint):
        run_page(f"```console\n{body}```\n", tmp_path)


def test_a_program_that_is_wrong_is_told(tmp_path):
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_page("```python\n1 / 0\n```\n", tmp_path)


def test_a_policy_that_is_wrong_is_told(tmp_path):
    from purify_audit.core.errors import PlanError

    with pytest.raises(PlanError, match=r"no key 'metrik'; 'metric' may be meant"):
        run_page('```toml\n[[gate.rule]]\nid = "a"\nmetrik = "rms_gain"\n```\n', tmp_path)


def test_files_are_shared_within_a_page(tmp_path):
    page = (
        "<!-- file: a.py -->\n\n```python\nb = 7\n```\n\n```python\nimport a\nassert a.b == 7\n```"
    )
    assert (
        run_page(f"{page}\n\n```console\n$ python -c 'import a; print(a.b)'\n7\n```", tmp_path) == 2
    )
