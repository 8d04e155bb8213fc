"""Fine-tune a translation model in a loop of accelerate, as people's scripts do, without this package.

It reads the same files as `translation_script.py`.
"""

import argparse
import json

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq


def read_arguments(argv):
    parser = argparse.ArgumentParser()
    for name in ("model", "train_file", "validation_file", "output_dir"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--patience", type=int, default=0)
    parser.add_argument("--resume", default="")
    return parser.parse_args(argv)


def read(path):
    with open(path, encoding="utf-8") as file:
        return Dataset.from_list([json.loads(line) for line in file])


def evaluate(accelerator, model, tokenizer, eval_dataloader):
    model.eval()
    outputs, total = [], 0.0
    for batch in eval_dataloader:
        with torch.no_grad():
            total += model(**batch).loss.item()
            generated = accelerator.unwrap_model(model).generate(
                batch["input_ids"], attention_mask=batch["attention_mask"], max_length=12, num_beams=2
            )
        generated = accelerator.pad_across_processes(generated, dim=1, pad_index=tokenizer.pad_token_id)
        outputs += accelerator.gather_for_metrics(generated).tolist()
    return total, outputs


def main(argv=None):
    args = read_arguments(argv)
    set_seed(1)
    accelerator = Accelerator(gradient_accumulation_steps=args.accumulation, cpu=True)
    raw = {"train": read(args.train_file), "validation": read(args.validation_file)}
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSeq2SeqLM.from_pretrained(args.model)

    def preprocess(examples):
        model_inputs = {"input_ids": [], "attention_mask": [], "labels": []}
        for pair, texts in zip(examples["pair"], examples["translation"], strict=True):
            source, target = pair.split("-")
            if hasattr(tokenizer, "src_lang"):
                tokenizer.src_lang, tokenizer.tgt_lang = source, target
            row = tokenizer(texts[source], text_target=texts[target], max_length=48, truncation=True)
            for name, values in model_inputs.items():
                values.append(row[name])
        return model_inputs

    columns = raw["train"].column_names
    data = {name: part.map(preprocess, batched=True, remove_columns=columns) for name, part in raw.items()}
    data_collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    train_dataloader = DataLoader(
        data["train"], shuffle=True, collate_fn=data_collator, batch_size=args.batch_size
    )
    eval_dataloader = DataLoader(data["validation"], collate_fn=data_collator, batch_size=args.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, train_dataloader, eval_dataloader = accelerator.prepare(
        model, optimizer, train_dataloader, eval_dataloader
    )
    start = 0
    if args.resume:
        accelerator.load_state(args.resume)
        start = int(args.resume.rpartition("_")[2]) + 1

    losses, evaluated, outputs = [], [], []
    for epoch in range(start, args.epochs):
        model.train()
        for batch in train_dataloader:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        total, outputs = evaluate(accelerator, model, tokenizer, eval_dataloader)
        evaluated.append(total)
        accelerator.save_state(f"{args.output_dir}/epoch_{epoch}")
        if args.patience and len(evaluated) > args.patience and evaluated[-1] >= min(evaluated[:-1]):
            break
    accelerator.wait_for_everyone()
    accelerator.unwrap_model(model).save_pretrained(
        args.output_dir, is_main_process=accelerator.is_main_process, save_function=accelerator.save
    )
    return accelerator.unwrap_model(model), losses, evaluated, outputs
