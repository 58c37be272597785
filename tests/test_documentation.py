"""Documentation is true where a program can tell: links lead somewhere, commands and options are accepted."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from basicsr.config.command_line import parse_arguments
from basicsr.config.load import load_options, load_test_options

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(file for file in sorted(ROOT.glob("*.md"))),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("options", "datasets", "experiments", "findings")),
]
WRITTEN_BY_THE_READER = {
    "basicsr/archs/block.py",
    "basicsr/archs/model/common.py",
    "basicsr/archs/plain_arch.py",
    "basicsr/archs/smfan_arch.py",
    "basicsr/data/hr_only_dataset.py",
    "basicsr/distill/similarity.py",
    "basicsr/export/pth_format.py",
    "basicsr/losses/fourier_loss.py",
    "basicsr/metrics/mean_error.py",
    "options/methods/similarity.yml",
}
PARSE_ARGS = argparse.ArgumentParser.parse_args
# Options files that the reader makes, or stands a name in capitals for.
OWN_FILE = re.compile(r"(^|/)(mine_?\S*|similarity|rkd_seed0)\.yml$|[A-Z]{3,}|[$*]")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        if language in languages:
            yield text


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_its_heading(page):
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_is_named_exists(page):
    text = page.read_text("utf-8")
    named = re.findall(r"`((?:basicsr|scripts|tests|benchmarks|options)/[\w/.]+\.(?:py|sh|yml|json|sbatch|md))`", text)
    missing = {file for file in named if not (ROOT / file).exists() and not re.search("[A-Z]{3}", file)}
    assert missing - WRITTEN_BY_THE_READER == set()


def commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for text in blocks(page, "bash", "console", "sh"):
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    del words[0]
                if words:
                    yield f"{name_of(page)}: {line.strip()[:100]}", words


COMMANDS = list(commands())


@pytest.fixture
def accepted(monkeypatch):
    """Runs a program of ours until it has read its command line."""

    class CommandLineRead(Exception):
        pass

    def parse_args(parser, args=None, namespace=None):
        result = PARSE_ARGS(parser, args, namespace)
        raise CommandLineRead(result)

    def run(file: Path, arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", [str(file), *arguments])
        monkeypatch.syspath_prepend(str(file.parent))
        spec = importlib.util.spec_from_file_location(f"documented_{file.stem}", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(CommandLineRead):
            module.main()
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", PARSE_ARGS)

    return run


@pytest.mark.parametrize("words", [words for _, words in COMMANDS], ids=[label for label, _ in COMMANDS])
def test_every_command_is_accepted(words, accepted):
    programs = [word for word in words if word.endswith((".py", ".sh", ".sbatch")) and "/" in word]
    for program in programs:
        assert (ROOT / program).exists(), program
    for test in [word for word in words if word.startswith("tests/")]:
        assert (ROOT / test.partition("::")[0]).exists(), test
    for file in [word for word in words if word.startswith("options/") and not OWN_FILE.search(word)]:
        assert (ROOT / file).exists(), file
    scripts = [word for word in programs if word.endswith(".py") and not word.startswith("tests/")]
    if not scripts:
        return
    arguments = words[words.index(scripts[0]) + 1 :]
    training = scripts[0] == "basicsr/train.py"
    if not training and scripts[0] != "basicsr/test.py":
        accepted(ROOT / scripts[0], arguments)
        return
    parsed = parse_arguments(arguments, training=training)
    if not OWN_FILE.search(parsed.opt):
        load = load_options if training else load_test_options
        changes = [change for change in parsed.force_yml or () if not OWN_FILE.search(change)]
        load(ROOT / parsed.opt, overrides=changes, paths=False, **({"training": True} if training else {}))


def fragments() -> Iterator[tuple[str, str]]:
    """Pieces of options files; without those that name a class which the page tells the reader to write."""
    for page in PAGES:
        written = set(re.findall(r"^(?:class|def) (\w+)", "".join(blocks(page, "python")), re.MULTILINE))
        for text in blocks(page, "yaml"):
            if re.search(r"^\w+:", text) and not written & set(re.findall(r"type: (\w+)", text)):
                yield f"{name_of(page)}: {text.splitlines()[0]}", text


FRAGMENTS = list(fragments())


def within(*keys: str, text: str) -> str:
    for key in reversed(keys):
        text = f"{key}:\n{textwrap.indent(text, '  ')}"
    return text


@pytest.mark.parametrize("text", [text for _, text in FRAGMENTS], ids=[label for label, _ in FRAGMENTS])
def test_every_piece_of_options_is_accepted(text, tmp_path):
    keys = set(re.findall(r"^(\w+):", text, re.MULTILINE))
    if "dataroot_gt" in keys:
        text = within("datasets", "train", text=text)
    if keys <= {"csd", "fakd"}:
        text = within("train", "distill", text=text)
    training = not keys & {"networks", "report"}
    base = f"options/{'train/mcadkd_edsr_x2' if training else 'test/edsr_x2'}.yml"
    file = tmp_path / "options.yml"
    if "compress" in keys:  # a whole file of another command
        file.write_text(re.sub(r"\.\./(networks|base|methods)/", rf"{ROOT}/options/\1/", text))
        importlib.import_module("compression.options").read_settings(file, paths=False)
        return
    if "_base_" in keys:  # a whole file
        text = re.sub(r"^_base_: ([\w./]+)", rf"_base_: [{ROOT / base}, \1]", text, flags=re.MULTILINE)
    else:
        text = f"_base_: {ROOT / base}\n{text}"
    file.write_text(re.sub(r"\.\./(networks|base|methods|train)/", rf"{ROOT}/options/\1/", text))
    load_options(file, training=True, paths=False) if training else load_test_options(file, paths=False)
