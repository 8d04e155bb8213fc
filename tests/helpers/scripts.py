"""Scripts that know nothing of this package, the guide's diffs for them, and files of five families."""

import json
import random
import subprocess
from types import SimpleNamespace

from tests.helpers.models import tiny_m2m100, tiny_marian, tiny_mbart, tiny_t5
from tests.helpers.pages import ROOT, blocks
from tests.helpers.tiny_tokenizers import TEXT, make_tokenizer

TRAINER, LOOP = "translation_script", "translation_loop"
FAMILIES = {
    "m2m100": (tiny_m2m100, "m2m100", ["en-de", "de-en"]),
    "nllb": (tiny_m2m100, "nllb", ["eng_Latn-deu_Latn", "deu_Latn-eng_Latn"]),
    "mbart50": (tiny_mbart, "mbart50", ["en_XX-de_DE", "de_DE-en_XX"]),
    "marian": (tiny_marian, "marian", ["eng-deu", "eng-fra"]),
    "t5": (tiny_t5, "t5", ["en-de", "de-en"]),
}
"""Family → model, tokenizer, and pairs in the tokenizer's codes; the second one is what `column` adds."""
PREFIXES = {
    "marian": {"eng-deu": ">>deu<< ", "eng-fra": ">>fra<< "},
    "t5": {"en-de": "translate English to German: ", "de-en": "translate German to English: "},
}


def diffs():
    """Return the guide's: of the Trainer's script, of the loop, and of the column for several pairs."""
    return blocks(ROOT / "recipes" / "GUIDE.md", "diff")


def patched(folder, name, pair, several=False):
    """Return the source of a script with the guide's diff applied, for one pair or with its column."""
    lines, loop, column = diffs()
    helpers = folder / "tests" / "helpers"
    helpers.mkdir(parents=True, exist_ok=True)
    (helpers / f"{name}.py").write_text(plain(name), encoding="utf-8")
    asked = {TRAINER: lines, LOOP: loop}[name]
    for diff in [asked, column.replace(TRAINER, name)] if several else [asked]:
        subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=folder, check=True)
    source = (helpers / f"{name}.py").read_text(encoding="utf-8")
    return source.replace('pair="en-de"', 'column="pair"' if several else f'pair="{pair}"')


def plain(name):
    return (ROOT / "tests" / "helpers" / f"{name}.py").read_text(encoding="utf-8")


def long_way(name, pairs):
    """Return the source of a script that does by the package's parts what the four lines are to do."""
    source = plain(name).replace(
        "        return model_inputs\n",
        '        model_inputs["pair"] = examples["pair"]\n        return model_inputs\n',
    )
    source = source.replace(
        "    data_collator = DataCollatorForSeq2Seq(tokenizer, model=model)\n",
        f"""
    import nspec_hf
    from nspec_hf.training.setup_checks import freeze_unsaved
    freeze_unsaved(model)
    start = model.config.decoder_start_token_id
    data_collator = nspec_hf.PairCollator(tokenizer, {pairs}, decoder_start_token_id=start)
    rows = [data["validation"][i] for i in range(len(data["validation"]))]
    stats = nspec_hf.record(model, [data_collator([row]) for row in rows], {pairs})
    gate = nspec_hf.NeuronGate(model, nspec_hf.NeuronMasks.from_coverage(stats))
    gate.attach()
""",
    )
    if name == TRAINER:
        return source.replace(
            "= Seq2SeqTrainer(\n", "= nspec_hf.SpecializationTrainer(\n        gate=gate,\n"
        )
    # By hand what generate needs: the pairs, and each row's target language.
    given = 'attention_mask=batch["attention_mask"],'
    return source.replace(given, f"{given} **prompts(batch, eval_dataloader.collate_fn, model),").replace(
        "def read(path):\n",
        """
def prompts(batch, collator, model):
    ids, start = batch["pair_ids"], model.config.decoder_start_token_id
    rows = [collator.tags.decoder_prefix(collator.pairs[i], start) for i in ids.tolist()]
    if len(rows[0]) == 1:
        return {"pair_ids": ids}
    return {"pair_ids": ids, "decoder_input_ids": torch.tensor(rows), "forced_bos_token_id": None}


def read(path):
""",
    )


def run(source, argv):
    """Run a script's source and return what its `main` does."""
    names = {"__name__": "script"}
    exec(compile(source, "script", "exec"), names)
    return names["main"]([str(each) for each in argv])


def write_family(folder, family, pairs, train=16, validation=6):
    """Write a family's tiny model, its tokenizer and text of some pairs; return where they are."""
    make, name, _ = FAMILIES[family]
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(folder / "parts", name)
    ids = [
        *tokenizer.get_vocab().values(),
        *getattr(tokenizer, "lang_token_to_id", {}).values(),
        len(tokenizer),
    ]
    special = {f"{part}_token_id": getattr(tokenizer, f"{part}_token_id") for part in ("pad", "eos")}
    start = special["pad_token_id"] if family in ("marian", "t5") else special["eos_token_id"]
    sizes = {"vocab_size": max(ids) + 1, **special, "decoder_start_token_id": start}
    if family == "marian":
        sizes["decoder_vocab_size"] = sizes["vocab_size"]
    model = make(0, **sizes)
    for part in (model, tokenizer):
        part.save_pretrained(folder / "model")
    draw = random.Random(0)
    for split, count in {"train_file": train, "validation_file": validation}.items():
        rows = [_row(family, pair, draw) for _ in range(count) for pair in pairs]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = [
        each
        for split in ("train_file", "validation_file")
        for each in (f"--{split}", folder / f"{split}.jsonl")
    ]
    return SimpleNamespace(model=model, tokenizer=tokenizer, argv=["--model", folder / "model", *files])


def _row(family, pair, draw):
    source, target = pair.split("-")
    words = " ".join(TEXT).split()
    said = {code: " ".join(draw.choices(words, k=draw.randint(2, 6))) for code in (source, target)}
    said[source] = PREFIXES.get(family, {}).get(pair, "") + said[source]
    return {"pair": pair, "translation": said}
