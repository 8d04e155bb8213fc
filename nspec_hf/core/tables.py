r"""A table of results and the five ways in which it is printed: text, Markdown, CSV, LaTeX and JSON.

Text, Markdown and LaTeX are for reading: numbers are rounded and what is undefined is a dash. CSV and JSON
are for other programs: numbers are exact and what is undefined is empty or `null`.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from nspec_hf.core.errors import require

Cell = str | int | float | None
TableFormat = Literal["text", "markdown", "csv", "latex", "json"]

_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"→": r"$\rightarrow$", "≥": r"$\geq$", "<": r"$<$", ">": r"$>$", "–": "--", "−": "$-$"}
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under headings, with the notes that say how the numbers were made."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    """Lines under the table: metric signatures, generation settings. A number never travels without them."""
    digits: int = 2
    """How many digits after the point, where numbers are rounded for reading."""

    def __post_init__(self) -> None:
        """Check that every row has a cell for every column."""
        for row in self.rows:
            require(
                len(row) == len(self.columns),
                f"table {self.title!r}: {len(row)} cells under {len(self.columns)} columns: {row}",
            )

    def render(self, style: TableFormat = "text") -> str:
        """Return the table as text in one of the styles, ending in a newline.

        Raises:
            ConfigError: If the style is unknown.
        """
        known = get_args(TableFormat)
        require(style in known, f"unknown table format {style!r}; formats are: {', '.join(known)}")
        return getattr(self, f"_{style}")().rstrip("\n") + "\n"

    def __str__(self) -> str:
        """Return the table as text."""
        return self.render("text")

    def _text(self) -> str:
        table = RichTable(title=Text(self.title), title_justify="left", box=box.SIMPLE_HEAD)
        for column, numeric in zip(self.columns, self._numeric(), strict=True):
            table.add_column(Text(column), justify="right" if numeric else "left", no_wrap=True)
        for row in self.rows:
            # Text, not str: rich would read a cell such as "[de]" as markup and swallow it.
            table.add_row(*(Text(self._readable(cell)) for cell in row))
        stream = io.StringIO()
        # As wide as needed: a table that is cut off at the terminal's edge would lose numbers without a word.
        Console(file=stream, width=1000, no_color=True, highlight=False, legacy_windows=False).print(table)
        lines = [line.rstrip() for line in stream.getvalue().removesuffix("\n").split("\n")]
        return "\n".join([*(line for line in lines if line), *self.notes])

    def _markdown(self) -> str:
        heads = [column.replace("|", "\\|") for column in self.columns]
        rules = ["---:" if numeric else "---" for numeric in self._numeric()]
        body = [[self._readable(cell).replace("|", "\\|") for cell in row] for row in self.rows]
        lines = [f"| {' | '.join(cells)} |" for cells in [heads, rules, *body]]
        notes = [f"- `{note}`" for note in self.notes]
        return "\n".join([f"**{self.title}**", "", *lines, *([""] if notes else []), *notes])

    def _latex(self) -> str:
        spec = "".join("r" if numeric else "l" for numeric in self._numeric())
        body = [[self._readable(cell).translate(_LATEX) for cell in row] for row in self.rows]
        lines = [f"  {' & '.join(cells)} \\\\" for cells in body]
        head = " & ".join(column.translate(_LATEX) for column in self.columns)
        return "\n".join(
            [
                f"% {self.title}; needs \\usepackage{{booktabs}}",
                *(f"% {note}" for note in self.notes),
                f"\\begin{{tabular}}{{{spec}}}",
                "  \\toprule",
                f"  {head} \\\\",
                "  \\midrule",
                *lines,
                "  \\bottomrule",
                "\\end{tabular}",
            ]
        )

    def _csv(self) -> str:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([_exact(cell) for cell in row] for row in self.rows)
        return stream.getvalue()

    def _json(self) -> str:
        rows = [dict(zip(self.columns, (_exact(cell) for cell in row), strict=True)) for row in self.rows]
        content = {"title": self.title, "columns": self.columns, "rows": rows, "notes": self.notes}
        return json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)

    def _numeric(self) -> list[bool]:
        """Return whether each column holds a number, and nothing else."""
        columns = ([row[i] for row in self.rows if row[i] is not None] for i in range(len(self.columns)))
        return [bool(cells) and all(isinstance(cell, (int, float)) for cell in cells) for cells in columns]

    def _readable(self, cell: Cell) -> str:
        cell = _exact(cell)
        if cell is None:
            return "–"
        return f"{cell:.{self.digits}f}" if isinstance(cell, float) else str(cell)


def join_tables(tables: Sequence[Table], style: TableFormat = "text") -> str:
    """Return several tables in one text; JSON becomes a list, CSV blocks are kept apart by an empty line."""
    parts = [table.render(style) for table in tables]
    return f"[{','.join(parts)}]\n" if style == "json" else "\n".join(parts)


def _exact(cell: Cell) -> Cell:
    """Return the cell, with a number that is not finite as None and a float of numpy as a plain one."""
    if isinstance(cell, float):
        return float(cell) if math.isfinite(cell) else None
    return cell
