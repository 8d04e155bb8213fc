"""How long work shows what it does: one bar a training run, and lines that say what begins.

On a terminal, bars say how far a step is. Elsewhere (a log file, CI) there are no bars, only a line a stage.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging


class Speaker:
    """Prints headings with the seconds since the start, and tables."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._started = time.monotonic()

    def heading(self, text: str) -> None:
        """Print what begins now."""
        seconds = time.monotonic() - self._started
        self._console.print(f"\n[dim]{seconds:4.0f} s[/dim]  [bold]{text}[/bold]")

    def show(self, what: object) -> None:
        """Print a text or a table."""
        self._console.print(str(what), markup=False)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Switch off the bars that transformers draws for every model that is loaded or saved."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


class TrainingBar(TrainerCallback):
    """One bar for a training run, in the place of the Trainer's own and of its log of every pair's loss."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar = tqdm(disable=True)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the bar, where standard error is a terminal; a resumed run begins where it stood."""
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=self._name, unit="update", disable=None
        )

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        """Move the bar."""
        self._bar.update(1)

    def on_log(self, *_: Any, logs: Mapping[str, float] | None = None, **kwargs: Any) -> None:
        """Write the loss behind the bar."""
        if logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.2f}")

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        """Leave the bar as it is."""
        self._bar.close()
