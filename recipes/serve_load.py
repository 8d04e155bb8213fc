"""Load `nspec serve` on this machine: are all answers right, is one lost, what does mixing cost?

    python recipes/serve_load.py --model runs/mine --data data/multi30k --pairs en-de,de-en,en-fr,fr-en \
        --seconds 60 --json serve.json

Clients ask for every pair at once, one sentence a request, each as soon as its last is answered. Three loads
of equally many such streams: pairs mixed; one pair after the other; and pairs mixed, with a server that keeps
them apart (one pair a batch). Every answer is compared with that of a translator without a server. Then more
are sent than may wait, and in the middle of that the server is told to stop: as many answers must have come
as it says it has given.
"""

import argparse
import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from nspec_hf.core import (
    Pair,
    Table,
    exit_status,
    read_json,
    require,
    require_writable,
    write_json,
    write_result,
)
from nspec_hf.data import CorpusConfig, read_corpus
from nspec_hf.evaluation import TranslateConfig
from nspec_hf.serving import load

Texts = Mapping[Pair, Sequence[tuple[str, str]]]
"""Pair → (source, the translation without a server)."""


@dataclass
class Load:
    """What came of some seconds of requests."""

    seconds: float = 0.0
    statuses: Counter = field(default_factory=Counter)
    """Status → answers; `lost`: no answer at all."""
    wrong: int = 0
    """Translations other than those without a server."""
    waited: list[float] = field(default_factory=list)
    """Seconds of each answered request."""
    memory: list[float] = field(default_factory=list)
    """Memory of the server in MiB, once a second."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a stream adds to the counts."""

    @property
    def rate(self) -> float:
        """Sentences a second."""
        return self.statuses[200] / self.seconds

    def percentile(self, share: float) -> float:
        """Return how many milliseconds that share of the requests took at most."""
        ordered = sorted(self.waited) or [0.0]
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def facts(self) -> dict[str, object]:
        """Return the numbers for tables and files."""
        return {
            "sentences": self.statuses[200],
            "a_second": round(self.rate, 2),
            "p50_ms": round(self.percentile(0.5), 1),
            "p99_ms": round(self.percentile(0.99), 1),
            "refused": self.statuses[429],
            "wrong": self.wrong,
            "lost": self.statuses["lost"],
        }


def main(argv: Sequence[str] | None = None) -> int:
    """Translate without a server, load the server, print; return 1 where an answer is wrong or lost."""
    options = read_options(argv)
    if options.json:
        require_writable(options.json)
    pairs = [Pair(pair) for pair in options.pairs.split(",")]
    texts = without_server(options, pairs)
    streams = [pair for pair in pairs for _ in range(options.clients)]
    found, loads = {}, {}
    with server(options, []) as (process, address):
        send(address, texts, streams, min(5.0, options.seconds))  # what is loaded once is loaded now
        loads["mixed"] = send(address, texts, streams, options.seconds, process)
        single = [send(address, texts, [pair] * len(streams), options.seconds / len(pairs)) for pair in pairs]
        loads["one pair at a time"] = together(single)
        found["health"] = ask(address, "GET", "/health")[1]
    with server(options, ["--batching.mix_pairs", "false"]) as (_, address):
        send(address, texts, streams, min(5.0, options.seconds))
        loads["one pair a batch"] = send(address, texts, streams, options.seconds)
    with server(options, ["--batching.max_waiting", "8"]) as (process, address):
        stop = threading.Timer(options.seconds / 6, process.send_signal, [signal.SIGTERM])
        stop.start()
        last = loads["more than may wait"] = send(
            address, texts, streams, options.seconds / 6 + 2, stops=True
        )
        found["exit_status"] = process.wait(60)
        said = process.stdout.read() if process.stdout else ""
        answered = int(re.findall(r"(\d+) answered", said)[-1])
        last.statuses["lost"] += answered - last.statuses[200]
    memory = loads["mixed"].memory
    found |= {
        "streams": len(streams),
        "loads": {name: each.facts() for name, each in loads.items()},
        "mixed_to_one_pair_at_a_time": round(loads["mixed"].rate / loads["one pair at a time"].rate, 3),
        "mixed_to_one_pair_a_batch": round(loads["mixed"].rate / loads["one pair a batch"].rate, 3),
        "memory_mib": {"first": memory[0], "last": memory[-1], "most": max(memory)} if memory else None,
    }
    print(table(loads, found))
    if options.json:
        paths = {name: Path(getattr(options, name)).name for name in ("model", "data")}
        left_out = {"json", "offline"}
        settings = {name: value for name, value in vars(options).items() if name not in left_out}
        health = {**found["health"], "model": paths["model"], "base": Path(found["health"]["base"]).name}
        write_result(options.json, {**found, "health": health}, {**settings, **paths})
    faults = sum(each.wrong + int(str(each.facts()["lost"])) for each in loads.values())
    return int(faults > 0 or found["exit_status"] != 0)


def without_server(options: argparse.Namespace, pairs: Sequence[Pair]) -> Texts:
    """Return some sentences of each pair with their translations, each translated alone and made once."""
    kept = Path(options.offline) if options.offline else None
    if kept and kept.is_file():
        return {Pair(pair): rows for pair, rows in read_json(kept).items()}
    corpus = read_corpus(CorpusConfig(path=options.data), pairs, options.split)
    decoding = TranslateConfig(num_beams=options.beams, progress=False)
    loaded = load(options.model, translate=decoding)
    texts = {}
    for text in corpus:
        sources = text.sources[: options.sentences]
        require(bool(sources), f"there is no {options.split} text of {text.pair}")
        translations = [loaded.translate(source, text.pair) for source in sources]
        texts[text.pair] = list(zip(sources, translations, strict=True))
    if kept:
        write_json(kept, texts)
    return texts


@contextmanager
def server(
    options: argparse.Namespace, arguments: Sequence[str]
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `nspec serve` on a free port; give the process and its address."""
    command = [sys.executable, "-m", "nspec_hf", "serve", "--model", options.model, "--serve.port", "0"]
    command += ["--translate.num_beams", str(options.beams), *arguments]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        try:
            line = process.stdout.readline() if process.stdout else ""
            if " at http://" not in line:
                said.seek(0)
                raise OSError(f"the server did not start: {said.read()}")
            yield process, line.split(" at ")[1].split(";")[0]
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(60)
            if process.stdout:
                process.stdout.close()


def send(
    address: str,
    texts: Texts,
    streams: Sequence[Pair],
    seconds: float,
    process: subprocess.Popen[str] | None = None,
    stops: bool = False,
) -> Load:
    """Send requests for some seconds.

    Args:
        address: Of the server.
        texts: What is sent, and the right answers.
        streams: The pair of each stream, a thread that sends a sentence once the last one is answered.
        seconds: How long.
        process: The server, whose memory is looked at.
        stops: Whether the server is told to stop meanwhile: a stream then ends where it no longer listens.
    """
    done, began = Load(), time.monotonic()
    until = began + seconds
    threads = [
        threading.Thread(target=stream, args=(address, pair, texts[pair], number * 7, until, done, stops))
        for number, pair in enumerate(streams)
    ]
    for thread in threads:
        thread.start()
    while process is not None and time.monotonic() < until:
        done.memory += [each for each in [memory_of(process.pid)] if each]
        time.sleep(min(1.0, seconds / 4))
    for thread in threads:
        thread.join()
    done.seconds = time.monotonic() - began
    return done


def stream(
    address: str,
    pair: Pair,
    rows: Sequence[tuple[str, str]],
    first: int,
    until: float,
    done: Load,
    stops: bool,
) -> None:
    """Send one sentence after the other, each once the last is answered, and count what comes of it."""
    connection, number = None, first
    while time.monotonic() < until:
        connection = connection or connected(address)
        if connection is None:
            with done.lock:
                done.statuses["lost"] += not stops
            return
        source, right = rows[number % len(rows)]
        number, began = number + 1, time.monotonic()
        status, answer = request(connection, "POST", "/translate", {"texts": [source], "pair": pair})
        if status not in (200, 429):
            connection = None
        with done.lock:
            # A server that stops closes connections that bring it nothing; it says itself what it answered.
            known = status in (200, 429, 503)
            done.statuses[status if known else "closed" if stops else "lost"] += 1
            if status == 200:
                done.waited.append(time.monotonic() - began)
                done.wrong += answer["translations"] != [right]


def connected(address: str) -> http.client.HTTPConnection | None:
    """Return a connection, or None where nothing listens any more."""
    where = urlsplit(address)
    connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=300)
    try:
        connection.connect()
    except OSError:
        return None
    return connection


def request(
    connection: http.client.HTTPConnection, method: str, path: str, body: object = None
) -> tuple[int | str, dict]:
    """Return status and answer; the status is `none` where there is no answer."""
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError):
        return "none", {}


def ask(address: str, method: str, path: str) -> tuple[int | str, dict]:
    """Return status and answer of one request on a connection of its own."""
    connection = connected(address)
    return ("none", {}) if connection is None else request(connection, method, path)


def together(loads: Sequence[Load]) -> Load:
    """Return several loads, one after the other, as one."""
    whole = Load(seconds=sum(each.seconds for each in loads), wrong=sum(each.wrong for each in loads))
    for each in loads:
        whole.statuses += each.statuses
        whole.waited += each.waited
    return whole


def memory_of(pid: int) -> float | None:
    """Return the memory that a process holds, in MiB; None where the system does not tell it this way."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    sizes = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return round(int(sizes[0]) / 1024, 1) if sizes else None


def table(loads: Mapping[str, Load], found: Mapping[str, object]) -> Table:
    """Return the numbers as a table."""
    columns = ("load", *next(iter(loads.values())).facts())
    rows = tuple((name, *load.facts().values()) for name, load in loads.items())
    names = ("mixed_to_one_pair_at_a_time", "mixed_to_one_pair_a_batch", "memory_mib", "exit_status")
    notes = tuple(f"{name.replace('_', ' ')}: {found[name]}" for name in names)
    return Table(title=f"{found['streams']} streams", columns=columns, rows=rows, notes=notes)  # type: ignore[arg-type]


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="what `nspec serve` is to load")
    parser.add_argument("--data", required=True, help="folder of parallel text")
    parser.add_argument("--pairs", required=True, help="the directions, with commas between them")
    parser.add_argument("--split", default="test_2016_flickr", help="text; default: %(default)s")
    parser.add_argument("--sentences", type=int, default=50, help="how many of each pair")
    parser.add_argument("--clients", type=int, default=4, help="clients, each with a stream for every pair")
    parser.add_argument("--seconds", type=float, default=60, help="length of a load; default: %(default)s")
    parser.add_argument("--beams", type=int, default=1, help="beams; default: %(default)s")
    parser.add_argument("--offline", help="file that keeps the translations without a server")
    parser.add_argument("--json", help="file for the result, with versions and hardware")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(exit_status("serve_load.py", main))
