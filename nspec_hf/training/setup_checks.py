"""Checks of a training's set-up, made before its first batch: each names a way to a silently wrong model.

`SpecializationCallback` makes them in a plain Trainer, `SpecializationTrainer` makes them with and without a
gate.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import DataCollatorForSeq2Seq, TrainingArguments

from nspec_hf.core import NotFiniteError, Pair, TrainingSetupError, add_up, is_spread, part, warn
from nspec_hf.data import IGNORED, EncodedCorpus, LanguageTags, PairCollator
from nspec_hf.gating import freeze_unsaved
from nspec_hf.recording import SIDES, position_limit


def check_setup(model: nn.Module, args: TrainingArguments, data: object, collator: object) -> None:
    """Make all checks of a model, out of its wrappers, that need no gate; freeze what could not be saved.

    Raises:
        TrainingSetupError: If one fails.
    """
    freeze_unsaved(model)
    check_precision(model)
    check_saving(model)
    check_layerdrop(model, args.world_size)
    check_decoder_inputs(model, collator)
    check_decoder_start(model, collator)
    if isinstance(data, EncodedCorpus):
        check_lengths(model, data)


def check_precision(model: nn.Module) -> None:
    """Refuse weights that train in float16, where updates vanish; warn of bfloat16, which rounds them."""
    dtypes = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    advice = (
        "load the model in float32 (from_pretrained(…, dtype=torch.float32)) and let the Trainer compute in "
        "half precision (bf16=True or fp16=True)"
    )
    if torch.float16 in dtypes:
        raise TrainingSetupError(f"weights in float16 train to NaN (Adam's ε is 0 there); {advice}")
    if torch.bfloat16 in dtypes:
        warn(f"weights in bfloat16 lose updates smaller than 1/256 of a weight; {advice}")


def check_finite(model: nn.Module) -> None:
    """Check the weights that train.

    Raises:
        NotFiniteError: If one is NaN or infinite.
    """
    trained = [(name, part(weight)) for name, weight in model.named_parameters() if weight.requires_grad]
    flags = torch.tensor([not (each.is_meta or bool(torch.isfinite(each).all())) for _, each in trained])
    # Where each process sees its own part, all must hear of it: one that raised alone would leave the others
    # waiting. Else all see the same, and one may save alone.
    flags = add_up(flags.int()) if is_spread(model) else flags
    broken = [name for (name, _), flag in zip(trained, flags.tolist(), strict=True) if flag]
    if broken:
        raise NotFiniteError(
            f"training has made {len(broken)} weights NaN or infinite ({', '.join(broken[:3])}), so nothing "
            "more is saved; go on from an earlier checkpoint with a lower learning rate, longer warm-up, or "
            "in float32"
        )


def check_saving(model: nn.Module) -> None:
    """Refuse a generation config that the library will not save, which it says only when all is trained."""
    config = getattr(model, "generation_config", None)
    try:
        if config is not None:
            config.validate(strict=True)
    except ValueError as error:
        raise TrainingSetupError(
            f"model.generation_config cannot be saved, so the trained model could not be either: {error}"
        ) from error


def check_schedule(args: TrainingArguments, updates: int) -> None:
    """Warn of a warm-up that takes the whole training, so that the learning rate never arrives."""
    warmup = args.get_warmup_steps(updates)
    if 0 < updates <= warmup:
        warn(
            f"{warmup} warm-up updates of {updates} in all: training ends before the learning rate of "
            f"{args.learning_rate:g} is reached; set warmup_steps to about a tenth of the updates"
        )


def check_layerdrop(model: nn.Module, world_size: int) -> None:
    """Warn of layers that drop out in training; refuse them under several processes, which would differ."""
    config = getattr(model, "config", None)
    dropped = [name for name in ("encoder_layerdrop", "decoder_layerdrop") if getattr(config, name, 0)]
    if not dropped:
        return
    message = f"model.config.{' and '.join(dropped)} drop whole layers in training; set them to 0"
    if world_size > 1:
        raise TrainingSetupError(f"{message}, since processes would drop different ones")
    warn(message)


def check_same_pairs(
    holder: str, expected: Sequence[Pair], other_holder: str, pairs: Sequence[str] | None
) -> None:
    """Check that two parts of a set-up number the pairs alike; None, for a part without pairs, passes.

    Raises:
        TrainingSetupError: If they do not.
    """
    if pairs is not None and list(pairs) != list(expected):
        raise TrainingSetupError(
            f"the {other_holder} numbers its pairs {', '.join(pairs)}, but the {holder} "
            f"{', '.join(expected)}, so pair_ids would stand for the wrong pairs; make both from the same "
            "list, for instance masks.pairs"
        )


def check_decoder_start(model: nn.Module, collator: object) -> None:
    """Check that the collator's decoder inputs begin as the model's do; another collator passes."""
    if not isinstance(collator, PairCollator):
        return
    tags, start = collator.tags, collator.decoder_start_token_id
    # A family that begins with the target's tag (mBART-25, PLBart) never uses the token.
    if not any(start in tags.decoder_prefix(pair, start)[:1] for pair in collator.pairs):
        return
    parts = {name: getattr(model, name, None) for name in ("config", "generation_config")}
    starts = {name: getattr(part, "decoder_start_token_id", None) for name, part in parts.items()}
    for name, other in starts.items():
        if isinstance(other, int) and start != other:
            raise TrainingSetupError(
                f"the collator's decoder inputs begin with token {start}, but model.{name} says "
                f"decoder_start_token_id={other}, so translations would begin otherwise than in training; "
                f"give PairCollator decoder_start_token_id=model.{name}.decoder_start_token_id"
            )
    if not any(isinstance(other, int) for other in starts.values()):
        raise TrainingSetupError(
            "the model says no decoder_start_token_id, so it could be trained but not translate; set "
            f"model.generation_config.decoder_start_token_id, for this tokenizer most likely {start}"
        )


def check_decoder_inputs(model: nn.Module, collator: object) -> None:
    """Refuse a collator of the library that leaves decoder inputs to labels, which the exact loss takes out.

    Then mBART and BART train on the source as their decoder's input, and M2M-100 stops.
    """
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", True):
        if isinstance(collator, PairCollator):
            raise TrainingSetupError(
                "PairCollator makes batches for encoder-decoder models; in a decoder-only model labels stand "
                "at the places of their own input_ids, so it would learn nothing of the source"
            )
        return
    makes = "prepare_decoder_input_ids_from_labels"
    if isinstance(collator, DataCollatorForSeq2Seq) and not hasattr(collator.model, makes):
        raise TrainingSetupError(
            "the batches of this DataCollatorForSeq2Seq have no decoder_input_ids, but the Trainer takes "
            "the labels out for compute_loss_func and for label smoothing, so mBART and BART would train on "
            "the source as their decoder's input, and others stop; use PairCollator(tokenizer, pairs)"
        )


def check_places(batch: Mapping[str, Tensor], shifts: bool) -> None:
    """Refuse a batch whose labels do not stand where a model's loss looks for them.

    Those of a decoder-only model, which `shifts` them, are its own input but for what is left out; where
    there is an encoder, they are the token behind each of the decoder's inputs.
    """
    ids, labels = batch.get("input_ids" if shifts else "decoder_input_ids"), batch.get("labels")
    if ids is None or labels is None or ids.shape != labels.shape:
        return  # TokenLoss compares the labels' shape with the logits'
    same = bool(((labels == IGNORED) | (labels == ids)).all())
    if same and not shifts and ids.shape[-1] > 1:  # an empty text is its end, which some decoders start from
        raise TrainingSetupError(
            "decoder_input_ids are the labels themselves, so that the decoder is shown what it is to write "
            "and learns to copy it; move them one to the right, as PairCollator(tokenizer, pairs) does"
        )
    if shifts and not same:
        raise TrainingSetupError(
            "a decoder-only batch's labels are not the tokens of its input_ids at the same places; "
            f"take labels = input_ids, with {IGNORED} where nothing is to be learned (the shift is ours)"
        )


def check_lengths(model: nn.Module, corpus: EncodedCorpus) -> None:
    """Refuse sentences that are longer than a model's table of positions (Marian, BART, mBART …)."""
    limits = [position_limit(model, side) for side in SIDES]  # LED's are of two sizes
    for limit, longest in zip(limits, corpus.lengths.max(axis=0, initial=0).tolist(), strict=True):
        if limit is not None and longest > limit:
            raise TrainingSetupError(
                f"a sentence of the corpus has {longest} tokens, but the model has {limit} positions; encode "
                f"the text with encode_corpus(…, max_length={limit}), in settings "
                f"`batches.max_length: {limit}`"
            )


def check_forced_start(asked: object, prompts_BT: Tensor) -> None:
    """Warn where `generate` is given a forced first token that is not followed: prompts end with another."""
    begun = set(prompts_BT[:, -1].tolist())
    if asked is not None and set(torch.as_tensor(asked).flatten().tolist()) != begun:
        warn(
            f"forced_bos_token_id={asked} is not followed: each row begins in its pair's target language, "
            f"here with {', '.join(map(str, sorted(begun)))}; leave it out, or give other pairs"
        )


def check_one_target_language(tags: LanguageTags | None, pairs: Sequence[Pair], evaluates: bool) -> None:
    """Refuse generation in training by a plain Seq2SeqTrainer, if the pairs' translations begin differently.

    Where training does not evaluate, so that it comes later if at all, only warn; tags of None pass.
    """
    if tags is None or len({tuple(tags.decoder_prefix(pair, 0)) for pair in pairs}) < 2:
        return
    message = (
        "predict_with_generate of a plain Seq2SeqTrainer begins all rows with one target language, but "
        f"these pairs have several: {', '.join(sorted({pair.target for pair in pairs}))}. "
        "Use SpecializationTrainer in its place, which takes the same arguments"
    )
    if evaluates:
        raise TrainingSetupError(message)
    warn(f"{message}, or generate one target language at a time")
