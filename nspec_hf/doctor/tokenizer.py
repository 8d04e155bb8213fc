"""Checks of the tokenizer: has each language a tag, the model a row for it, and the text its subwords?"""

from collections.abc import Iterator

from nspec_hf.core import NspecError
from nspec_hf.doctor.setup import Finding, NotCheckedError, Setup, note, one_line

_UNKNOWN_SHARE = 0.02
_SAMPLE = 200  # sentences of each language


def check_tokenizer(setup: Setup) -> Iterator[Finding]:
    """Look at the tokenizer, alone, beside the model and beside the text."""
    try:
        tags = setup.tags
    except NspecError as error:
        if isinstance(error.__cause__, OSError):
            raise NotCheckedError(f"there is no tokenizer {setup.model}") from error
        yield Finding(
            what=f"the tokenizer cannot be used: {one_line(error)}",
            why="text cannot be encoded as the model learned it",
            mend="save it beside the model: tokenizer.save_pretrained(MODEL)",
        )
        return
    yield from _tags(setup)
    rows, size = setup.given("model", lambda: _rows(setup)), len(setup.tokenizer)
    if size > rows:
        yield Finding(
            what=f"the tokenizer knows {size} tokens, the model has embeddings for {rows}",
            why="a sentence with one of the others stops with an index error",
            mend="take the model's own tokenizer, or model.resize_token_embeddings(len(tokenizer))",
        )
    if setup.corpus is not None and setup.directions:
        yield from _unknown(setup)
    if getattr(tags.tokenizer, "legacy_behaviour", False):
        yield note(
            what="legacy_behaviour is set: the source's tag stands behind the sentence",
            why="models of today expect it in front, and their neurons fire differently",
            mend="save the tokenizer anew with legacy_behaviour=False, unless the model was trained with it",
        )


def _tags(setup: Setup) -> Iterator[Finding]:
    ids: dict[int, str] = {}
    for pair in setup.directions:
        try:
            setup.tags.check(pair)
        except NspecError as error:
            yield Finding(
                what=f"{pair}: {one_line(error)}",
                why="its text would be encoded as another language, or as an unknown token",
                mend="use the tokenizer's code in the pair, or map yours: --codes '{en: eng_Latn}'",
            )
            continue
        number = setup.tags.target_tag_id(pair)
        if number is None:
            continue
        other = ids.setdefault(number, pair.target)
        if other != pair.target:
            yield Finding(
                what=f"{other} and {pair.target} share the tag with id {number}",
                why="the model cannot tell them apart, and translations come out in one of them",
                mend="give the new language a tag of its own (tokenizer.add_tokens) and grow the embeddings",
            )
        rows = setup.given("model", lambda: _rows(setup))
        if number >= rows:
            yield Finding(
                what=f"the tag of {pair.target} has id {number}, but the model has embeddings for {rows} "
                "tokens",
                why="the first batch with it stops with an index error",
                mend="model.resize_token_embeddings(len(tokenizer)), then train the new row",
            )


def _rows(setup: Setup) -> int:
    return len(setup.network.get_input_embeddings().get_parameter("weight"))


def _unknown(setup: Setup) -> Iterator[Finding]:
    unknown, tokenizer = setup.tokenizer.unk_token_id, setup.tokenizer
    texts = next(iter(setup.given("text", lambda: setup.texts).values()), [])
    sides = {text.pair.source: text.sources for text in texts}
    sides |= {text.pair.target: text.targets for text in texts}
    for code, sentences in sides.items():
        rows = tokenizer(list(sentences[:_SAMPLE]), add_special_tokens=False)["input_ids"]
        total = sum(map(len, rows))
        share = sum(row.count(unknown) for row in rows) / max(total, 1)
        if share > _UNKNOWN_SHARE:
            yield Finding(
                what=f"{share:.0%} of the tokens of {code} are unknown (first {len(rows)} sentences)",
                why="the model cannot read or write what stands there, and activations are counted on it",
                mend="add the missing characters to the vocabulary, or transliterate the text",
            )
