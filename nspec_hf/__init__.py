"""nspec_hf: language-pair specific neurons for multilingual translation models of Hugging Face Transformers.

The pipeline, which is also the order of the files:

    texts   = read_corpus(CorpusConfig(path="data"), ["en-de", "de-en"], "train")   # parallel text
    corpus  = encode_corpus(texts, LanguageTags(tokenizer))                       # pair-tagged token ids
    stats   = record(model, batches, pairs)                                        # who fires for whom
    masks   = NeuronMasks.from_coverage(stats, coverage=0.95)                      # what a pair keeps
    gate    = NeuronGate(model, masks)                                             # each row runs its own
    trainer = SpecializationTrainer(model=model, gate=gate, …); trainer.train()    # continued training
    Translator(model, tokenizer, masks).translate(["A dog."], "en-de")             # any mix of pairs
    masks.push_to_hub("me/my-masks")                                               # a few hundred kilobytes
    load("me/my-masks").translate(["A dog."], "en-de")                             # wherever it is needed

Names below are loaded when they are first used, so that importing the package loads neither torch nor
matplotlib. `ROOMS` is the map of the house, read from top to bottom.
"""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.core import Pair as Pair
    from nspec_hf.data import (
        BatchConfig as BatchConfig,
        CorpusConfig as CorpusConfig,
        EncodedCorpus as EncodedCorpus,
        PairBatchSampler as PairBatchSampler,
        PairCollator as PairCollator,
        encode_corpus as encode_corpus,
        LanguageTags as LanguageTags,
        read_corpus as read_corpus,
    )
    from nspec_hf.recording import (
        ActivationStats as ActivationStats,
        RecordConfig as RecordConfig,
        Site as Site,
        find_sites as find_sites,
        record as record,
    )
    from nspec_hf.masks import (
        NeuronMasks as NeuronMasks,
        SelectConfig as SelectConfig,
        allocate_by_importance as allocate_by_importance,
        select_by_coverage as select_by_coverage,
        select_random as select_random,
    )
    from nspec_hf.gating import GateConfig as GateConfig, NeuronGate as NeuronGate
    from nspec_hf.training import (
        Specialization as Specialization,
        SpecializationCallback as SpecializationCallback,
        SpecializationTrainer as SpecializationTrainer,
        TokenLoss as TokenLoss,
    )
    from nspec_hf.evaluation import (
        TranslateConfig as TranslateConfig,
        Translator as Translator,
        compare as compare,
        score as score,
    )
    from nspec_hf.export import (
        ExportConfig as ExportConfig,
        export_model as export_model,
        load_pruned as load_pruned,
    )
    from nspec_hf.serving import BatchingTranslator as BatchingTranslator, load as load, publish as publish

__version__ = "0.1.0"

ROOMS: dict[str, str] = {
    "core": "errors lazy settings pairs tables files folders artifact distributed provenance allocator "
    "invocation",
    "data": "config moses tokenizer language_tags stored corpus dataset sampler collator translations "
    "sound_changes synthetic",
    "recording": "config weights model sites stats accumulator cross_entropy recorder script_batches",
    "masks": "config rules bits select model_card readable repository hub masks",
    "gating": "config internals route routing entry_points attachment linears mask_mode gradient_mode "
    "slice_mode gate widen",
    "training": "config loss checkpoints arguments setup_checks callback trainer_hooks trainer elastic "
    "specialization run base_model",
    "evaluation": "config requests translator generate metrics comet language_id saved system_scores groups "
    "paired_test significance",
    "analysis": "result mask_overlap language_families general_specific ablation sweeps gain_tables probing "
    "analysis figures.style figures.neurons figures.gains figures.tradeoffs figures.registry report.page",
    "export": "config memory prune ctranslate2 tokenizer_cut vocabulary verify trim group report reading "
    "export",
    "adding": "config branches vocabulary addition added languages saved run",
    "systems": "plan experiment result display run system parts.rowwise parts.zero_shot parts.subnetworks "
    "parts.clones baseline masked controls variants elastic individual lass differentiation "
    "families adapters target_attention architectures registry pipeline before_training whole_run",
    "comparison": "jobs runs table_data costs aggregate tables",
    "serving": "config exported layout loading batching app publishing",
    "doctor": "setup environment model tokenizer config masks text regime examination",
    "demo": "display demo",
    "cli": "pipeline translate adding run evaluate analyze probe doctor serve publish demo main",
}
"""Room → its files as a newcomer reads them. A room imports only from the public names of rooms above it, a
file only from files above it in its room; `tests/test_layers.py` holds both."""

__getattr__, __dir__, __all__ = attach(__name__)
__all__ += ["ROOMS", "__version__"]
