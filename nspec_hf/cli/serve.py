"""What `nspec serve` does."""

import sys
from collections.abc import Mapping

from nspec_hf import evaluation, gating, serving
from nspec_hf.core import needs


@needs(base="not masks")
def serve(
    model: str,
    masks: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    base: str | None = None,
    serve: serving.ServeConfig = serving.ServeConfig(),
    batching: serving.BatchingConfig = serving.BatchingConfig(),
    translate: evaluation.TranslateConfig = evaluation.TranslateConfig(),
    gate: gating.GateConfig | None = None,
    coverage: float | None = None,
    codes: Mapping[str, str] | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Answer requests over HTTP, texts of different pairs together; needs `pip install nspec-hf[serve]`.

    Example: nspec serve --model me/my-masks --serve.port 8000

    then: curl -H 'Content-Type: application/json' -d '{"texts": ["A dog runs."], "pair": "en-de"}'
    http://127.0.0.1:8000/translate

    /pairs lists the pairs, /health what is served. It ends on Ctrl-C or SIGTERM, once all that was let in is
    answered.

    Args:
        model: Hub id or folder: masks that name their model, a run, an exported model, or a plain one.
        masks: Masks for that model, where it is a plain one.
        revision: Of the repository: a branch, tag or commit.
        subfolder: Folder inside it, where it holds several sets of masks.
        base: Hub id or folder of the model, in the place of the one that the masks name.
        serve: Address and limits of a request.
        batching: How requests become batches.
        translate: Decoding.
        gate: How the masks act, in the place of how they did in training.
        coverage: Of masks that keep several levels, the one to run: the dial between quality and speed.
        codes: Your language codes → the tokenizer's, where they differ.
        device: Where the model runs: cpu, cuda …
        trust_remote_code: Whether code that the model's repository brings may run on this machine.
    """
    make_app = serving.make_app  # a missing extra is missed before the model is loaded
    serving.check_address(serve)
    source, base = (masks, model) if masks else (model, base)
    loaded = serving.load(
        source,
        revision,
        subfolder=subfolder,
        base=base,
        translate=translate,
        gate=gate,
        coverage=coverage,
        codes=codes,
        trust_remote_code=trust_remote_code,
        device=device,
    )
    pairs = ", ".join(loaded.pairs) if loaded.pairs is not None else "all that the tokenizer knows"

    def ready(address: str) -> None:
        sys.stdout.write(f"{source} at {address}; pairs: {pairs}\n")
        sys.stdout.flush()

    app = make_app(loaded, serve, batching)
    serving.run_server(app, serve, ready)
    counts = app.state.counts
    sys.stdout.write(f"stopped: {counts.requests} requests were let in, {counts.answered} answered\n")
