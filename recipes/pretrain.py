"""Train a multilingual base model from scratch: text, vocabulary, M2M-100 architecture, test scores.

    python recipes/pretrain.py recipes/configs/multi30k.yaml --data.corpus.path DIR
    accelerate launch --config_file recipes/accelerate/ddp.yaml recipes/pretrain.py recipes/configs/bible.yaml

A stopped run goes on where it stood. The model and its tokenizer are left in `work/base/model`,
translations of the test set in `work/base/outputs`, scores and the whole recipe in
`recipes/results/NAME.base.json`.
"""

import json
from pathlib import Path

from nspec_hf.core import claim_folder, write_result
from nspec_hf.data import LanguageTags, encode_corpus
from nspec_hf.evaluation import Translator, evaluate_system
from nspec_hf.recording import load_model
from nspec_hf.systems import ExperimentConfig, read_settings
from nspec_hf.training import join_processes, make_model, make_tokenizer, train


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
        tokenizer = make_tokenizer(texts, config.vocabulary, folder / "tokenizer")
    tags = LanguageTags(tokenizer, data.codes)
    for text in tests:
        tags.check(text.pair)
    max_length = config.pretrain.batches.max_length
    corpus = encode_corpus(texts, tags, max_length)
    validation = encode_corpus(validation_texts, tags, max_length)
    model = make_model(tokenizer, config.model, int(config.pretrain.arguments.get("seed", 42)))
    result = train(model, tokenizer, corpus, config.pretrain, folder, validation, codes=data.codes)
    if not state.is_main_process:
        return
    # What was saved is what is scored: under FSDP, this process holds only a part of the trained model.
    model = load_model(folder / "model", device=state.device)
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


if __name__ == "__main__":
    main()
