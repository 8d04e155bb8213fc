"""Text → tagged ids → batches: languages and their tags, corpora, batches that know their pairs."""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.data.config import CorpusConfig as CorpusConfig, VocabularyConfig as VocabularyConfig
    from nspec_hf.data.moses import learned as learned
    from nspec_hf.data.language_tags import (
        LanguageTags as LanguageTags,
        half_a_character as half_a_character,
        as_tags as as_tags,
        special_id as special_id,
        vocabularies as vocabularies,
    )
    from nspec_hf.data.tokenizer import load_tokenizer as load_tokenizer, train_vocabulary as train_vocabulary
    from nspec_hf.data.stored import PairText as PairText, StoredText as StoredText
    from nspec_hf.data.corpus import is_blank as is_blank, read_corpus as read_corpus
    from nspec_hf.data.dataset import EncodedCorpus as EncodedCorpus, encode_corpus as encode_corpus
    from nspec_hf.data.sampler import BatchConfig as BatchConfig, PairBatchSampler as PairBatchSampler
    from nspec_hf.data.collator import IGNORED as IGNORED, PairCollator as PairCollator
    from nspec_hf.data.translations import (
        Outputs as Outputs,
        read_outputs as read_outputs,
        require_parallel as require_parallel,
    )
    from nspec_hf.data.synthetic import (
        LanguageFamilies as LanguageFamilies,
        SyntheticConfig as SyntheticConfig,
    )

__getattr__, __dir__, __all__ = attach(__name__)
