"""What the documents show: that examples can be read, commands exist, and links lead somewhere."""

from __future__ import annotations

import ast
import configparser
import json
import re
import shlex
import subprocess
import tomllib
import xml.dom.minidom
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim._pb.runtimeoptions.v1 import options_pb2
from shim.bootstrap.answer import RUNTIME
from shim.bootstrap.options import decode
from shim.cli import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIG = ROOT / "packaging/containerd-config.toml"
# Where each version of containerd's configuration has CRI's runtimes.
CRI = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_LINK = re.compile(r"\]\(([^)#:]*)(?:#([^)]+))?\)")
# Words that end a command in a line of shell.
_ENDS = {";", "&&", "||", "|", "&"}


class Block(NamedTuple):
    """A fenced block of a document, and its language."""

    document: Path
    language: str
    text: str


def blocks(*languages: str) -> list[Block]:
    found = (
        Block(document, language, text)
        for document in DOCUMENTS
        for language, text in _FENCE.findall(document.read_text())
    )
    return [block for block in found if block.language in languages]


def name_of(block: Block) -> str:
    return f"{block.document.name}: {block.text.strip().splitlines()[0][:40]}"


def each(*languages: str) -> pytest.MarkDecorator:
    """Run a test with each block of these languages; there are some."""
    found = blocks(*languages)
    assert found, languages
    return pytest.mark.parametrize("block", found, ids=map(name_of, found))


# -- TOML


def options_of(table: dict[str, Any]) -> None:
    """Read options as the launcher does. Raises InvalidArgument."""
    lines = (f"{key} = {json.dumps(value)}" for key, value in table.items())
    message = options_pb2.Options(config_body="\n".join(lines).encode())
    name = message.DESCRIPTOR.full_name
    decode(AnyMessage(type_url=name, value=message.SerializeToString()))


def check_configuration(table: dict[str, Any]) -> None:
    """containerd's: the runtime is ours, its options can be read, and the default is there, too."""
    (section,) = table["plugins"]
    assert section == CRI[table["version"]]
    runtimes = table["plugins"][section]["containerd"]["runtimes"]
    for name, runtime in runtimes.items():
        if name.startswith("dense"):
            assert runtime["runtime_type"] == RUNTIME
            options_of(runtime.get("options", {}))
    if "dense" in runtimes:
        assert runtimes["runc"] == {"runtime_type": "io.containerd.runc.v2"}


def check_toml(text: str) -> None:
    table = tomllib.loads(text)
    if "linux" in table.get("plugins", {}):
        assert table["plugins"]["linux"].keys() == {"shim", "runtime"}  # of 2017
    elif "plugins" in table:
        check_configuration(table)
    else:
        options_of(table)


@each("toml")
def test_toml(block: Block) -> None:
    check_toml(block.text)


def test_the_example_of_a_configuration() -> None:
    check_toml(CONFIG.read_text())


def test_every_option_is_in_the_table_of_options() -> None:
    source = (ROOT / "src/shim/bootstrap/options.py").read_text()
    keys = set(re.findall(r'_get\(table, "(\w+)"', source))
    assert len(keys) > 10
    text = (ROOT / "docs/containerd.md").read_text()
    table = text.partition("| key | default |")[2].partition("\n\n")[0]
    assert keys == set(re.findall(r"\b[A-Z]\w+\b", _first_column(table)))


def _first_column(table: str) -> str:
    return "\n".join(row.split("|")[1] for row in table.splitlines()[2:])


# -- other formats


@each("json")
def test_json(block: Block) -> None:
    assert isinstance(json.loads(block.text), dict)


@each("ini")
def test_units(block: Block) -> None:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.read_string(block.text)
    assert parser.sections() == ["Service"]


@each("python")
def test_python(block: Block) -> None:
    """It compiles, and what it imports from us is there."""
    compile(block.text, "example", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    imports = [node for node in ast.parse(block.text).body if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = __import__(str(node.module), fromlist=["*"])
        assert all(hasattr(module, alias.name) for alias in node.names)


def test_pictures() -> None:
    for path in (ROOT / "docs").glob("*.svg"):
        xml.dom.minidom.parse(str(path))


def read_yaml(text: str) -> dict[str, Any]:
    """The part of YAML that the examples have: nested mappings, and lists that are kept as text.

    Fails on what else there is.
    """
    found: dict[str, Any] = {}
    open_mappings = [(-1, found)]
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    for line in lines:
        indent = len(line) - len(line.lstrip())
        assert indent % 2 == 0, line
        assert "\t" not in line
        entry = re.fullmatch(r"(- )?(\w+): ?(.*)", line.strip())
        assert entry is not None, line
        while open_mappings[-1][0] >= indent:
            open_mappings.pop()
        _, key, value = entry.groups()
        inner: dict[str, Any] = {}
        open_mappings[-1][1][key] = value or inner
        if not value:
            open_mappings.append((indent, inner))
        elif entry[1]:
            open_mappings.append((indent, open_mappings[-1][1]))
    return found


def check_yaml(text: str) -> None:
    found = read_yaml(text)
    assert found["metadata"]["name"]
    if found["kind"] == "RuntimeClass":
        assert found["apiVersion"] == "node.k8s.io/v1"
        runtimes = tomllib.loads(CONFIG.read_text())["plugins"][CRI[2]]["containerd"]["runtimes"]
        assert found["handler"] in runtimes
    else:
        assert found["kind"] == "Pod"
        assert found["spec"]["runtimeClassName"] == "dense"


@each("yaml")
def test_yaml(block: Block) -> None:
    check_yaml(block.text)


def test_the_runtime_class() -> None:
    check_yaml((ROOT / "packaging/runtimeclass.yaml").read_text())


# -- commands


def words_of(line: str) -> Iterator[list[str]]:
    """The commands in a line of shell, each as its words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    command: list[str] = []
    for word in lexer:
        if word in _ENDS:
            yield command
            command = []
        else:
            command.append(word)
    yield command


def commands(program: str) -> list[list[str]]:
    """Every command line of a program, in blocks of shell and in code within text."""
    lines = [line for block in blocks("sh") for line in block.text.splitlines()]
    for document in DOCUMENTS:
        text = _FENCE.sub("", document.read_text())
        lines += [f"{code}" for code in re.findall(rf"`({re.escape(program)} [^`]*)`", text)]
    found = [words for line in lines for words in words_of(line) if words and words[0] == program]
    assert found, program
    return found


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that a command line is of, and the words after its name."""
    command: click.Command = main
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def test_every_command_of_ours_exists() -> None:
    for words in commands("denseshim"):
        command, rest = command_of(words)
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        own = rest[: rest.index("--")] if "--" in rest else rest
        for word in own:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, words
            elif word.startswith("-"):
                assert {f"-{letter}" for letter in word[1:]} <= known, words


def test_every_command_of_ours_is_in_a_document() -> None:
    text = "".join(document.read_text() for document in DOCUMENTS)
    groups = [group for group in main.commands.values() if isinstance(group, click.Group)]
    for group in (main, *groups):
        for name in group.commands:
            assert re.search(rf"`(denseshim )?{name}[` ]|denseshim (shim )?{name}\b", text), name


@pytest.mark.parametrize("program", ["packaging/install-node", "install-node"])
def test_the_installer_knows_its_options(program: str) -> None:
    usage = subprocess.check_output([ROOT / "packaging/install-node", "--help"], text=True)
    for words in commands(program):
        for word in words[1:]:
            if word.startswith("--") and word != "--help":
                assert word.partition("=")[0] in re.findall(r"--[a-z-]+", usage), words


def test_what_is_made_can_be_made() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for words in commands("make"):
        assert words[1] in targets, words


def test_files_of_the_tree_are_there() -> None:
    for document in DOCUMENTS:
        text = document.read_text()
        paths = re.findall(r"\b(?:packaging|scripts|tests|src/\w+)/[\w./-]*\w", text)
        for path in paths:
            assert (ROOT / path).exists(), f"{document.name}: {path}"


# -- links


def anchors(document: Path) -> set[str]:
    """What headings are linked to by."""
    text = _FENCE.sub("", document.read_text())
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for path, anchor in _LINK.findall(document.read_text()):
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"
