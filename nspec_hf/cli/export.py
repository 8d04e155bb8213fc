"""What `nspec export` does."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from transformers import AutoTokenizer

from nspec_hf.core import as_pairs
from nspec_hf.data import CorpusConfig, read_corpus
from nspec_hf.export import ExportConfig, export_model
from nspec_hf.masks import NeuronMasks
from nspec_hf.recording import load_model


def export(
    model: str,
    masks: str,
    pairs: str | Sequence[str],
    output: str,
    export: ExportConfig = ExportConfig(),
    corpus: CorpusConfig | None = None,
    split: str = "test",
    codes: Mapping[str, str] | None = None,
) -> None:
    """Write a model that has only the neurons of one pair, or of several together.

    Example: nspec export --model runs/mine/model --masks masks --pairs en-de --output en-de-ct2
    --export.format ctranslate2 --export.quantization int8_float32

    Args:
        model: Hub id or folder of the trained model.
        masks: Folder or Hub repository of masks.
        pairs: The pair, or pairs with commas between them.
        output: Folder that is written; must not hold anything yet.
        export: Form, and what it must prove.
        corpus: Where text lies to prove it on; without it, sentences are made up.
        split: Which text.
        codes: Your language codes → the tokenizer's, where they differ.
    """
    network, tokenizer = load_model(model), AutoTokenizer.from_pretrained(model)
    directions = as_pairs(pairs.split(",") if isinstance(pairs, str) else pairs)
    texts = None
    if corpus is not None:
        found = read_corpus(corpus, directions, split)
        texts = {text.pair: text.sources[: export.sample] for text in found}
    chosen = NeuronMasks.from_pretrained(masks)
    report = export_model(network, tokenizer, chosen, directions, output, export, texts, codes)
    Console(highlight=False, markup=False, soft_wrap=True).print(str(report))
