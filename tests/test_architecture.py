"""The architecture as tests: who may import whom, who may speak, and that every example and recipe names real options."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from zaya_cli.app import COMMANDS, LazyGroup
from zaya_cli.options import read_config

ROOT = Path(__file__).parents[1]
CORE, CLI = ROOT / "zaya_core", ROOT / "zaya_cli"

VALUES = {"errors", "events", "option", "config", "runtime", "assets", "devices", "presets", "settings"}
MAY_IMPORT = {
    **dict.fromkeys(VALUES, VALUES),
    "layout": VALUES,
    "ops": VALUES | {"layout"},
    "io": VALUES,
    "data": VALUES | {"io"},
    "model": VALUES | {"layout", "ops"},
    "engine": VALUES | {"layout", "ops", "model"},
    "train": VALUES | {"layout", "ops", "model", "io", "data"},
    "profile": VALUES | {"layout", "model", "engine", "train"},
    "evaluation": VALUES | {"layout", "model", "io", "data", "train"},
    "server": VALUES | {"layout", "ops", "model", "io", "data", "engine"},
    "stages": VALUES | {"layout", "ops", "model", "io", "data", "engine", "train", "profile", "evaluation", "server"},
}
# A checkpoint into a model, and two of them compared: the only places of model/ that see files.
KNOWN = {"model/load.py": {"io"}, "model/parity.py": {"io", "data"}}
CLI_MAY_IMPORT = {"errors", "events", "option", "config", ""}


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(node):
    """Dotted names that an import statement brings in; none for any other node."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        return [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "zaya_core" else [node.module]
    return []


def imports(path):
    return {name for node in ast.walk(parse(path)) for name in imported(node)}


def core_part(name):
    """`zaya_core.model.cca` -> `model`; `zaya_core.__version__` and `zaya_core` -> ``."""
    _, _, rest = name.partition(".")
    part = rest.split(".")[0]
    return "" if part.startswith("__") else part


def modules():
    paths = sorted(CORE.rglob("*.py"))
    assert len(paths) > 30, "the scan must see the library"
    return [path.relative_to(CORE).as_posix() for path in paths if path != CORE / "__init__.py"]


@pytest.mark.parametrize("module", modules())
def test_arrows_point_down(module):
    part = module.split("/")[0].removesuffix(".py")
    own = [name for name in imports(CORE / module) if name.split(".")[0] in ("zaya_core", "zaya_cli")]
    allowed = MAY_IMPORT[part] | KNOWN.get(module, set()) | {part, ""}
    assert [name for name in own if name.startswith("zaya_cli") or core_part(name) not in allowed] == []


def test_known_exceptions_are_still_needed():
    for module, parts in KNOWN.items():
        assert {core_part(name) for name in imports(CORE / module)} >= parts


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda path: path.name)
def test_the_command_line_sees_stages_only_by_name(path):
    found = {name for name in imports(path) if name.startswith("zaya_core")}
    assert {core_part(name) for name in found} <= CLI_MAY_IMPORT
    assert "torch" not in {name.split(".")[0] for name in imports(path)}


def test_the_engine_sees_no_path_and_no_text():
    for path in (CORE / "engine").glob("*.py"):
        assert not {"pathlib", "os", "json", "tokenizers", "transformers", "safetensors"} & imports(path), path
        assert not [node for node in ast.walk(parse(path)) if isinstance(node, ast.Call) and ast.unparse(node.func) == "open"]


def test_io_builds_no_module_and_model_no_loss():
    for path in (CORE / "io").glob("*.py"):
        assert not {"zaya_core.model", "torch.nn"} & imports(path)
    for path in (CORE / "model").glob("*.py"):
        assert not {"zaya_core.ops.loss", "zaya_core.ops.sampling"} & imports(path)


def spoken(tree):
    """Calls of print or input, and writes to the standard streams."""
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [name for name in calls if name in ("print", "input") or re.match(r"sys\.(stdout|stderr)\.|warnings\.warn$", name)]


@pytest.mark.parametrize("module", modules())
def test_the_core_does_not_speak(module):
    assert spoken(parse(CORE / module)) == []
    assert not {"rich", "click", "tqdm", "logging"} & {name.split(".")[0] for name in imports(CORE / module)}


def test_the_scan_for_speech_finds_it():
    assert spoken(ast.parse("def f():\n    print(1)\n    sys.stderr.write('x')")) == ["print", "sys.stderr.write"]


def test_stages_import_nothing_heavy():
    stages = ", ".join(f"zaya_core.stages.{path.stem}" for path in (CORE / "stages").glob("[a-z]*.py"))
    program = f"import sys, {stages}; print({{'torch', 'transformers', 'safetensors', 'numpy'}} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def build(name):
    return LazyGroup(COMMANDS).get_command(click.Context(click.Command("zaya")), name)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_examples_are_commands_that_parse(command):
    lines = importlib.import_module(command.module).EXAMPLE.strip().splitlines()
    assert lines
    for line in lines:
        program, name, *arguments = shlex.split(line, comments=True)
        assert (program, name) == ("zaya", command.name)
        built = build(name)
        context = built.make_context(name, arguments)
        assert isinstance(read_config(built.config_class, context), built.config_class)


NAMES = {command.name for command in COMMANDS}
PROGRAM = re.compile(r"(.*/)?zaya|zaya_cli|\$\{?ZAYA\}?")


def zaya_lines(script):
    """The argument words of every `zaya ...` in a shell script, up to the end of its simple command."""
    for line in script.replace("\\\n", " ").splitlines():
        words = None
        for word in shell_words(line):
            if set(word) <= set("();<>|&]"):  # ] ends a test such as [ -x bin/zaya ]
                yield from [words] if words else []
                words = None
            elif words is not None:
                words.append(word)
            elif PROGRAM.fullmatch(word):
                words = []
            if "$(" in word:
                yield from zaya_lines(word.partition("$(")[2])
        yield from [words] if words else []


def shell_words(line):
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    try:
        yield from lexer
    except ValueError:  # a quote that goes on in the next line
        return


def unknown_words(words):
    """What the command line would refuse by name: the command, or options that it does not have."""
    if words[0] in ("-h", "--help", "--version"):
        return []
    if words[0].replace("_", "-") not in NAMES:
        return [words[0]]
    known = {"-h", "--help"}
    for parameter in build(words[0].replace("_", "-")).params:
        known |= {*parameter.opts, *parameter.secondary_opts}
    given = [word.split("=")[0] for word in words[1:] if re.match(r"--?[a-zA-Z]", word)]
    return [word for word in given if "-" * (1 + word.startswith("--")) + word.lstrip("-").replace("_", "-") not in known]


SCRIPT = """
# zaya nothing
"$BIN/zaya" init tiny \\
  "$OUT" --seed 1 > log && run zaya convrt a b; .venv/bin/zaya convert --blok 4 $(x --y) | cat --z
text="$(zaya generate --promt 'a b')"
echo "zaya is a program"; command -v zaya; [ -x bin/zaya ]; [[ -x zaya ]] && zaya --version; zaya --vresion
"""


def test_the_recipe_reader_finds_mistakes():
    lines = list(zaya_lines(SCRIPT))
    assert [words[0] for words in lines] == ["init", "convrt", "convert", "generate", "--version", "--vresion"]
    assert lines[0] == ["init", "tiny", "$OUT", "--seed", "1"]
    assert [unknown_words(words) for words in lines] == [[], ["convrt"], ["--blok"], ["--promt"], [], ["--vresion"]]


def test_recipes_name_real_commands_and_options():
    for path in sorted((ROOT / "recipes").rglob("*.sh")):
        subprocess.run(["bash", "-n", str(path)], check=True)
        wrong = [(words, found) for words in zaya_lines(path.read_text(encoding="utf-8")) if (found := unknown_words(words))]
        assert wrong == [], path
