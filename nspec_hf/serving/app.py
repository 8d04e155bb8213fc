"""The web service: /translate, /pairs and /health of one loaded model. Needs `pip install nspec-hf[serve]`.

One process. Requests are checked where they come in and translated by `BatchingTranslator`, so a text waits
for others a few milliseconds and never for a batch of its own pair.

    400 or 422   the request is not understood, or cannot be translated; `detail` says why
    413          its body is too large
    429          as many texts wait as may wait; come again in `Retry-After` seconds
    503          the server was told to stop
"""

import asyncio
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from nspec_hf import __version__
from nspec_hf.core import NotFiniteError, NspecError, OverloadError, require
from nspec_hf.serving.batching import BatchingTranslator
from nspec_hf.serving.config import BatchingConfig, ServeConfig
from nspec_hf.serving.loading import LoadedModel


class Settings(BaseModel):
    """How the texts of a request are decoded; what is left out is as the server was started."""

    model_config = ConfigDict(extra="forbid", strict=True)

    num_beams: int | None = None
    length_penalty: float | None = None
    max_new_tokens: int | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None


class Asked(BaseModel):
    """Body of /translate."""

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: list[str]
    pair: str | list[str]
    """One pair for all texts, or one for each."""
    settings: Settings = Field(default_factory=Settings)


class Translations(BaseModel):
    """Answer of /translate, in the order of the texts."""

    translations: list[str]


def make_app(
    loaded: LoadedModel, config: ServeConfig | None = None, batching: BatchingConfig | None = None
) -> FastAPI:
    """Return the service as an ASGI app; its thread begins and ends with the app.

    While it runs, `app.state.counts` says what was done so far.
    """
    limits = config or ServeConfig()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service = BatchingTranslator(loaded, batching)
        app.state.counts = service.counts
        yield
        await asyncio.to_thread(service.close, limits.stop_seconds)

    app = FastAPI(title="nspec_hf", version=__version__, lifespan=lifespan)
    app.add_middleware(_BodyLimit, most=limits.max_body)

    @app.exception_handler(NspecError)
    async def refused(request: Request, error: NspecError) -> JSONResponse:
        if isinstance(error, OverloadError):
            status = 503 if app.state.service.closed else 429
            return JSONResponse({"detail": str(error)}, status, {"Retry-After": "1"})
        # A model whose scores are NaN is no fault of the request.
        return JSONResponse({"detail": str(error)}, 500 if isinstance(error, NotFiniteError) else 422)

    @app.exception_handler(RequestValidationError)
    async def not_understood(request: Request, error: RequestValidationError) -> JSONResponse:
        # Without the input, which may be long, or hold what JSON cannot bring back (half a character).
        faults = [f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors()]
        return JSONResponse({"detail": "; ".join(faults[:5])}, 422)

    @app.post("/translate")
    async def translate(asked: Asked) -> Translations:
        """Translate texts of any pairs."""
        _check_size(asked.texts, limits)
        given = asked.settings.model_dump(exclude_none=True)
        answer = app.state.service.submit(asked.texts, asked.pair, **given)
        return Translations(translations=await asyncio.wrap_future(answer))

    @app.get("/pairs")
    async def pairs() -> dict[str, Any]:
        """Return the pairs with neurons of their own; null where all neurons run for any pair."""
        acting = getattr(loaded.translator, "gate", None)
        return {"pairs": loaded.pairs, "others_are_composed": acting is not None and acting.composes_pairs}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Say what is served and what was done so far."""
        service = app.state.service
        return {
            "status": "stopping" if service.closed else "ok",
            "model": loaded.source,
            "revision": loaded.revision,
            "base": loaded.base,
            "masks": loaded.masks.fingerprint() if loaded.masks else None,
            "weights": loaded.weights,
            "version": __version__,
            "waiting": service.waiting,
            **asdict(service.counts),
        }

    return app


def check_address(config: ServeConfig) -> None:
    """Check, before a model is loaded, that the server can listen.

    Raises:
        OSError: If the address is taken, or is none of this machine.
    """
    _listening(config).close()


def run_server(
    app: FastAPI, config: ServeConfig | None = None, ready: Callable[[str], None] | None = None
) -> None:
    """Listen until SIGTERM or Ctrl-C; requests that were let in by then are answered first.

    `ready` is called with the address once requests can come.

    Raises:
        OSError: If the address is taken, or is none of this machine.
    """
    config = config or ServeConfig()
    with _listening(config) as listening:
        host = f"[{config.host}]" if ":" in config.host else config.host
        address = f"http://{host}:{listening.getsockname()[1]}"
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=config.stop_seconds,
            # A client that sends nothing more holds a connection no longer than this.
            timeout_keep_alive=30,
        )
        server = _Server(settings, (lambda: ready(address)) if ready else lambda: None)
        # uvicorn raises the signal that stopped it once more at its end; that is no fault.
        replaced = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                replaced[number] = signal.signal(number, lambda *_: None)
        try:
            server.run(sockets=[listening])
        finally:
            for number, handler in replaced.items():
                signal.signal(number, handler)


def _listening(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    return socket.create_server((config.host, config.port), family=family, backlog=2048)


class _Server(uvicorn.Server):
    """uvicorn's server, which says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started:
            self._ready()


class _BodyLimit:
    """Answers 413 where a body is larger than `most` bytes, whether or not it says so beforehand."""

    def __init__(self, app: Any, most: int) -> None:
        self.app, self.most = app, most
        self.said = f"the body is larger than {most} bytes; send fewer texts at once"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, counting the bytes of its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(value.isdigit() and int(value) > self.most for value in lengths):
            answer = JSONResponse({"detail": self.said}, 413, {"Connection": "close"})
            await answer(scope, receive, send)
            return
        read = 0

        async def counted() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:
                raise HTTPException(413, self.said, {"Connection": "close"})
            return message

        await self.app(scope, counted, send)


def _check_size(texts: list[str], limits: ServeConfig) -> None:
    """Raise a ConfigError where a request brings more than the server takes."""
    require(
        len(texts) <= limits.max_texts,
        f"{len(texts)} texts, at most {limits.max_texts} at once are translated",
    )
    for number, text in enumerate(texts):
        require(
            len(text) <= limits.max_characters,
            f"text {number} has {len(text)} characters, at most {limits.max_characters} are translated; "
            "split it into sentences",
        )
