"""Train a multilingual base model from scratch: text, vocabulary, M2M-100 architecture, test scores.

    python recipes/pretrain.py recipes/configs/multi30k.yaml --data.corpus.path DIR
    accelerate launch --config_file recipes/accelerate/ddp.yaml recipes/pretrain.py recipes/configs/bible.yaml

A stopped run goes on where it stood. The model and its tokenizer are left in `work/base/model`,
translations of the test set in `work/base/outputs`, scores and the whole recipe in
`recipes/results/NAME.base.json`.
"""

import json
import os
import shutil
from pathlib import Path

from transformers import (
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedTokenizerBase,
    set_seed,
)

from nspec_hf.checkpoints import claim_folder
from nspec_hf.corpus import PairText
from nspec_hf.encoded import encode_corpus
from nspec_hf.evaluation import evaluate_system
from nspec_hf.experiment import ExperimentConfig, read_settings
from nspec_hf.languages import language_tags
from nspec_hf.provenance import write_result
from nspec_hf.runs import join_processes, train
from nspec_hf.translate import Translator
from nspec_hf.vocabulary import train_vocabulary


def main(argv: list[str] | None = None) -> None:
    """Run the recipe."""
    config, _ = read_settings(ExperimentConfig, argv, description=__doc__)
    folder, data = Path(config.work) / "base", config.data
    claim_folder(folder, config.begun_with("vocabulary", "model"))
    state = join_processes()
    texts, validation_texts = data.read(data.train_split), data.read(data.valid_split)
    # Read before training, so that a file that is missing is missed now.
    tests = data.read(data.test_split, data.tested_pairs())
    with state.main_process_first():
        tokenizer = make_tokenizer(config, texts, folder / "tokenizer")
    tags = language_tags(tokenizer, data.codes)
    for text in tests:
        tags.check(text.pair)
    max_length = config.pretrain.batches.max_length
    corpus = encode_corpus(texts, tags, max_length)
    validation = encode_corpus(validation_texts, tags, max_length)
    model = make_model(config, tokenizer)
    result = train(model, tokenizer, corpus, config.pretrain, folder, validation, codes=data.codes)
    if not state.is_main_process:
        return
    # What was saved is what is scored: under FSDP, this process holds only a part of the trained model.
    model = M2M100ForConditionalGeneration.from_pretrained(folder / "model").to(state.device)
    translator = Translator(model, tokenizer, config=config.translate, codes=data.codes)
    scores = evaluate_system(
        "base", translator, tests, folder / "outputs", config.metrics, data.pivot, data.tiers
    )
    print(scores.table())
    outcome = {
        "system": "base",
        "parameters": model.num_parameters(),
        "target_tokens_an_epoch": int(corpus.lengths[:, 1].sum()),
        **result.facts(),
        "scores": json.loads(scores.to_json()),
    }
    write_result(Path(config.results) / f"{config.name}.base.json", outcome, config)


def make_tokenizer(config: ExperimentConfig, texts: list[PairText], folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in `folder`, trained first if it is not there.

    It is trained on the sentences of each language, each once, however many pairs share them.
    """
    if not folder.is_dir():
        sentences: dict[str, dict[str, None]] = {}
        for text in texts:
            sentences.setdefault(text.pair.source, {}).update(dict.fromkeys(text.sources))
            sentences.setdefault(text.pair.target, {}).update(dict.fromkeys(text.targets))
        everything = (sentence for own in sentences.values() for sentence in own)
        tokenizer = train_vocabulary(everything, list(sentences), config.vocabulary)
        unfinished = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        tokenizer.save_pretrained(unfinished)
        os.replace(unfinished, folder)
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
