"""Fine-tune a translation model with the Trainer, as people's scripts do; it knows nothing of this package.

A row of its JSON files: {"pair": "en-de", "translation": {"en": "…", "de": "…"}}, in the tokenizer's codes.
"""

import json
from dataclasses import dataclass

import numpy as np
import sacrebleu
from datasets import Dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)


@dataclass
class ScriptArguments:
    model: str
    train_file: str
    validation_file: str
    forced_bos_token: str = ""
    max_length: int = 48
    patience: int = 0


def read(path):
    with open(path, encoding="utf-8") as file:
        return Dataset.from_list([json.loads(line) for line in file])


def main(argv=None):
    parser = HfArgumentParser((ScriptArguments, Seq2SeqTrainingArguments))
    script, training_args = parser.parse_args_into_dataclasses(argv)
    raw = {"train": read(script.train_file), "validation": read(script.validation_file)}
    tokenizer = AutoTokenizer.from_pretrained(script.model)
    model = AutoModelForSeq2SeqLM.from_pretrained(script.model)
    if script.forced_bos_token:
        model.generation_config.forced_bos_token_id = tokenizer.convert_tokens_to_ids(script.forced_bos_token)

    def preprocess(examples):
        model_inputs = {"input_ids": [], "attention_mask": [], "labels": []}
        for pair, texts in zip(examples["pair"], examples["translation"], strict=True):
            source, target = pair.split("-")
            if hasattr(tokenizer, "src_lang"):
                tokenizer.src_lang, tokenizer.tgt_lang = source, target
            row = tokenizer(
                texts[source], text_target=texts[target], max_length=script.max_length, truncation=True
            )
            for name, values in model_inputs.items():
                values.append(row[name])
        return model_inputs

    columns = raw["train"].column_names
    data = {name: part.map(preprocess, batched=True, remove_columns=columns) for name, part in raw.items()}
    data_collator = DataCollatorForSeq2Seq(tokenizer, model=model)

    def compute_metrics(prediction):
        texts = [
            tokenizer.batch_decode(
                np.where(ids != -100, ids, tokenizer.pad_token_id), skip_special_tokens=True
            )
            for ids in (prediction.predictions, prediction.label_ids)
        ]
        return {"chrf": sacrebleu.corpus_chrf(texts[0], [texts[1]]).score}

    trainer = Seq2SeqTrainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        data_collator=data_collator,
        compute_metrics=compute_metrics if training_args.predict_with_generate else None,
        callbacks=[EarlyStoppingCallback(script.patience)] if script.patience else None,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    predicted = trainer.predict(data["validation"], max_length=script.max_length, num_beams=2)
    return trainer, predicted
