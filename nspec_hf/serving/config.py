"""How text is served. A file of its own, so that a command's help loads neither torch nor a web server."""

from dataclasses import dataclass

from nspec_hf.core import is_number, require, require_count


@dataclass(frozen=True, kw_only=True)
class BatchingConfig:
    """How requests of several threads become batches."""

    max_batch: int = 32
    """Most texts that are translated together; their tokens are bounded by `TranslateConfig.max_tokens`."""

    max_wait: float = 0.005
    """Seconds that the first request of a batch waits for others."""

    max_waiting: int = 256
    """Most texts that wait; what comes beyond is refused at once, so that all who are let in are answered."""

    mix_pairs: bool = True
    """Whether texts of different pairs may share a batch."""

    max_source: int | None = None
    """Longest text in tokens, tags included. None takes what the model has positions for; where it counts
    distances instead (T5), there is no limit."""

    def __post_init__(self) -> None:
        """Check the values."""
        require_count("max_batch", self.max_batch)
        require_count("max_waiting", self.max_waiting)
        within = is_number(self.max_wait) and 0 <= self.max_wait <= 10
        require(within, f"max_wait is 0 to 10 seconds, got {self.max_wait!r}")
        if self.max_source is not None:
            require_count("max_source", self.max_source, least=8)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where text is served, and how much of it a request may bring."""

    host: str = "127.0.0.1"
    """Address that is listened on; this machine alone by default. 0.0.0.0: every network."""

    port: int = 8000
    """Port; 0 takes a free one, which is printed."""

    max_body: int = 1 << 20
    """Largest body of a request in bytes; a larger one is answered with 413."""

    max_texts: int = 64
    """Most texts of a request."""

    max_characters: int = 2000
    """Longest text in characters. Beyond the model's positions a text is refused too, not cut."""

    stop_seconds: int = 30
    """How long requests that were let in may take once the server is told to stop."""

    def __post_init__(self) -> None:
        """Check the values."""
        require_count("port", self.port, least=0, most=65535)
        for name in ("max_body", "max_texts", "max_characters", "stop_seconds"):
            require_count(name, getattr(self, name))
