"""Train a multilingual base model from scratch: vocabulary → encoded text → M2M-100 architecture → test
scores.

    python recipes/pretrain.py recipes/configs/multi30k.yaml --data.corpus.path DIR
    accelerate launch --config_file recipes/accelerate/ddp.yaml recipes/pretrain.py recipes/configs/bible.yaml

A stopped run goes on where it stood. The model and its tokenizer are left in `work/base/model`,
translations of the test set in `work/base/outputs`, scores and the whole recipe in
`recipes/results/NAME.base.json`.
"""

import json
from pathlib import Path

from accelerate import PartialState
from transformers import (
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedTokenizerBase,
    set_seed,
)

from nspec_hf.corpus import PairText
from nspec_hf.encoded import encode_corpus
from nspec_hf.evaluation import evaluate_system
from nspec_hf.experiment import ExperimentConfig, read_settings
from nspec_hf.languages import language_tags
from nspec_hf.provenance import write_result
from nspec_hf.runs import train
from nspec_hf.translate import Translator
from nspec_hf.vocabulary import train_vocabulary


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    config, _ = read_settings(ExperimentConfig, argv, description=__doc__)
    folder = Path(config.work) / "base"
    state = PartialState()
    texts = config.data.read(config.data.train_split)
    with state.main_process_first():
        tokenizer = make_tokenizer(config, texts, folder / "tokenizer")
    tags = language_tags(tokenizer, config.data.codes)
    corpus = encode_corpus(texts, tags, config.pretrain.batches.max_length)
    validation = encode_corpus(
        config.data.read(config.data.valid_split), tags, config.pretrain.batches.max_length
    )
    model = make_model(config, tokenizer)
    result = train(model, tokenizer, corpus, config.pretrain, folder, validation)
    if not state.is_main_process:
        return
    pairs = [*config.data.trained_pairs(), *config.data.zero_shot_pairs()]
    scores = evaluate_system(
        "base",
        Translator(model, tokenizer, config=config.translate, codes=config.data.codes),
        config.data.read(config.data.test_split, pairs),
        folder / "outputs",
        config.metrics,
        config.data.pivot,
        config.data.tiers,
    )
    print(scores.table())
    outcome = {
        "system": "base",
        "parameters": model.num_parameters(),
        "updates": result.updates,
        "training_seconds": round(result.seconds, 1),
        "target_tokens_an_epoch": int(corpus.lengths[:, 1].sum()),
        "scores": json.loads(scores.to_json()),
    }
    write_result(Path(config.results) / f"{config.name}.base.json", outcome, config)


def make_tokenizer(config: ExperimentConfig, texts: list[PairText], folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in `folder`, trained first if it is not there: each language's text counts
    once."""
    if not (folder / "tokenizer.json").is_file():
        sides = {text.pair.source: text.sources for text in texts} | {
            text.pair.target: text.targets for text in texts
        }
        sentences = (sentence for side in sides.values() for sentence in side)
        train_vocabulary(sentences, list(sides), config.vocabulary).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def make_model(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase
) -> M2M100ForConditionalGeneration:
    """Return a fresh model of the M2M-100 architecture (pre-norm, tied embeddings), without layer dropout."""
    set_seed(int(config.pretrain.arguments.get("seed", 42)))
    settings = {
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "activation_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id}
    ids |= {"eos_token_id": tokenizer.eos_token_id, "decoder_start_token_id": tokenizer.eos_token_id}
    return M2M100ForConditionalGeneration(
        M2M100Config(vocab_size=len(tokenizer), **{**settings, **ids, **config.model})
    )


if __name__ == "__main__":
    main()
