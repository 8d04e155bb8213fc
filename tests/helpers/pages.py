"""What the pages tell a reader to type: shell lines and Python, taken from their text.

python -m tests.helpers.pages build/snippets     # their Python as files, one a page, for a type checker
"""

import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "recipes").glob("*.md")), *sorted((ROOT / ".github").glob("*.md"))]

GIVEN = """\
from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)


def page(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[str],
    validation_batches: Sequence[Mapping[str, Tensor]],
    train_dataset: Dataset,
    args: Seq2SeqTrainingArguments,
) -> None:
"""
"""What a page's Python leaves to the reader's script, with its types."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def shell(page: Path, program: str = "") -> list[str]:
    """Return the shell lines of a page without comments; of one program where it is named."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    lines = [line.split("  #")[0].strip() for line in lines]
    return [
        line
        for line in lines
        if line.startswith(f"{program} " if program else "") and line[:1] not in ("", "#")
    ]


def write_snippets(folder: Path) -> None:
    """Write a page's Python as one function, since a block goes on where the one before it ended."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in PAGES:
        code = "\n".join(blocks(page, "python"))
        if code:
            (folder / f"{page.stem.lower()}.py").write_text(
                GIVEN + textwrap.indent(code, "    "), encoding="utf-8"
            )


if __name__ == "__main__":
    write_snippets(Path(sys.argv[1]))
