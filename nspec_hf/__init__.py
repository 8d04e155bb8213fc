"""nspec_hf: language-pair specific neurons for multilingual translation models of Hugging Face Transformers.

The pipeline, which is also the order of the files:

    texts   = read_corpus(CorpusConfig(path="data"), ["en-de", "de-en"], "train")   # parallel text
    corpus  = encode_corpus(texts, language_tags(tokenizer))                       # pair-tagged token ids
    stats   = record(model, batches, pairs)                                        # who fires for whom
    masks   = NeuronMasks.from_coverage(stats, coverage=0.95)                      # what a pair keeps
    gate    = NeuronGate(model, masks)                                             # each row runs its own
    trainer = SpecializationTrainer(model=model, gate=gate, …); trainer.train()    # continued training
    Translator(model, tokenizer, masks).translate(["A dog."], "en-de")             # any mix of pairs
    masks.push_to_hub("me/my-masks")                                               # a few hundred kilobytes

Names below are loaded when they are first used, so that importing the package loads neither matplotlib nor
datasets. A file imports only from files above it in `READING_ORDER`.
"""

import importlib

__version__ = "0.1.0"

READING_ORDER = """
    errors pairs textfiles outputs languages config vocabulary artefact processes sites soundlaws synthetic
    corpus encoded batches collator stats tally recording
    bits selection choice card folder masks
    routing doors attachment silence gradient slices sliceable slicing gate baking growth translate
    tables scores offtarget comet scoreboard grouping trials significance
    provenance checkpoints base loss callback training runs evaluation comparison_plan experiment
    results overlap kinship allocation erasure sweeps effects probing analysis plots effect_plots report
    systems.system systems.rowwise systems.plain systems.masked systems.own_neurons
    systems.individual systems.zero_shot systems.subnetworks systems.lass
    systems.clones systems.differentiation systems.families systems.adapters
    systems.target_attention systems.architectures systems systems.running systems.untrained
    jobs comparison_runs paired_runs standings comparison comparison_tables
    ctranslate proof export
    commands export_commands evaluation_commands analysis_commands probing_commands
    showcase demo_settings demo cli __main__
""".split()
"""The files of the package as a newcomer reads them; `tests/test_layers.py` holds it."""

_PUBLIC = {
    "pairs": ("Pair",),
    "languages": ("language_tags",),
    "config": ("RecordConfig", "SelectConfig", "GateConfig"),
    "sites": ("Site", "find_sites"),
    "corpus": ("CorpusConfig", "read_corpus"),
    "encoded": ("EncodedCorpus", "encode_corpus"),
    "batches": ("BatchConfig", "PairBatchSampler"),
    "collator": ("PairCollator",),
    "stats": ("ActivationStats",),
    # Not record.py: once imported, a file of that name would hide the function.
    "recording": ("record",),
    "selection": ("select_by_coverage", "allocate_by_importance", "select_random"),
    "masks": ("NeuronMasks",),
    "gate": ("NeuronGate",),
    "growth": ("grow",),
    "export": ("ExportConfig", "export_model", "load_pruned"),
    "translate": ("TranslateConfig", "Translator"),
    "scores": ("score",),
    "significance": ("compare",),
    "loss": ("TokenLoss",),
    "callback": ("SpecializationCallback",),
    "training": ("SpecializationTrainer",),
}
_FILE_OF = {name: file for file, names in _PUBLIC.items() for name in names}

__all__ = ["READING_ORDER", "__version__", *sorted(_FILE_OF)]


def __getattr__(name: str) -> object:
    """Load a public name from its file."""
    if name not in _FILE_OF:
        raise AttributeError(f"nspec_hf has no {name!r}; it has: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"nspec_hf.{_FILE_OF[name]}"), name)
    # Kept, so that `nspec_hf.recording` is the function also after the file of that name was imported.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
