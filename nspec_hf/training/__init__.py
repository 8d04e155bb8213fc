"""Continued training: an exact loss, the callback, the trainer, and runs that can be stopped."""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.training.config import TrainConfig as TrainConfig
    from nspec_hf.training.arguments import (
        check_arguments as check_arguments,
        join_processes as join_processes,
        training_arguments as training_arguments,
    )
    from nspec_hf.training.loss import TokenLoss as TokenLoss
    from nspec_hf.training.checkpoints import (
        last_checkpoint as last_checkpoint,
        load_weights as load_weights,
    )
    from nspec_hf.training.callback import SpecializationCallback as SpecializationCallback
    from nspec_hf.training.trainer import SpecializationTrainer as SpecializationTrainer
    from nspec_hf.training.elastic import ElasticTrainer as ElasticTrainer
    from nspec_hf.training.specialization import Specialization as Specialization
    from nspec_hf.training.run import (
        TrainResult as TrainResult,
        record_corpus as record_corpus,
        text_loss as text_loss,
        train as train,
    )
    from nspec_hf.training.base_model import (
        check_model_settings as check_model_settings,
        fresh_model as fresh_model,
        make_model as make_model,
        make_tokenizer as make_tokenizer,
    )

__getattr__, __dir__, __all__ = attach(__name__)
