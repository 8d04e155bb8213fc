"""The demo as an experiment: the same settings for `nspec demo` and for `recipes/configs/demo.yaml`.

They were found by trying on one processor core, for a base that translates well after a minute and still has
something to learn; not for one of the compared systems to win.
"""

from pathlib import Path

from nspec_hf.data import BatchConfig, CorpusConfig, LanguageFamilies, VocabularyConfig
from nspec_hf.evaluation import TranslateConfig
from nspec_hf.masks import SelectConfig
from nspec_hf.systems import DataConfig, ExperimentConfig
from nspec_hf.training import TrainConfig

_LONGEST = 64  # tokens


def demo_experiment(
    world: LanguageFamilies, output: str | Path, updates: int = 1000, more_updates: int = 250
) -> ExperimentConfig:
    """Return the demo as an experiment, whose text is in `output/data`.

    Args:
        world: The languages.
        output: Folder of the demo.
        updates: Training steps of the base.
        more_updates: Further steps of each compared system.
    """
    seed, batches = (
        world.config.seed,
        BatchConfig(max_tokens=1000, max_length=_LONGEST, seed=world.config.seed),
    )
    common = {
        "weight_decay": 0.01,
        "label_smoothing_factor": 0.1,
        "eval_steps": 250,
        "save_steps": 200,
        "save_total_limit": 1,
        "logging_steps": 50,
        "seed": seed,
    }
    base = {
        "max_steps": updates,
        "learning_rate": 5e-3,
        "warmup_steps": 100,
        # The loss falls after a plateau of some 700 to 950 updates; a rate that decays before that holds it.
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": updates // 5, "decay_type": "linear"},
    }
    more = {
        "max_steps": more_updates,
        "learning_rate": 1e-3,
        "warmup_steps": 20,
        "lr_scheduler_type": "linear",
    }
    return ExperimentConfig(
        name="demo",
        work=str(output),
        results=str(Path(output) / "scores"),
        data=DataConfig(
            corpus=CorpusConfig(path=str(Path(output) / "data")),
            languages=world.languages,
            pivot=world.pivot,
            zero_shot=_unseen(world),
            families={code: world.family_of(code) for code in world.languages if code != world.pivot},
        ),
        vocabulary=VocabularyConfig(size=1000),
        model={
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 256,
            "decoder_ffn_dim": 256,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "max_position_embeddings": 128,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "encoder_layerdrop": 0.0,
            "decoder_layerdrop": 0.0,
            # With the usual 0.02, so small a model does not leave the plateau within the demo.
            "init_std": 0.125,
            "attn_implementation": "eager",
        },
        pretrain=TrainConfig(arguments={**common, **base}, batches=batches),
        select=SelectConfig(method="coverage", coverage=0.95, seed=seed),
        specialize=TrainConfig(arguments={**common, **more}, batches=batches),
        translate=TranslateConfig(num_beams=1, length_ratio=1.0, length_extra=15),
        metrics=["bleu"],
    )


def _unseen(world: LanguageFamilies) -> list[str]:
    """Return a few directions that are tested without training: in each family, and into the next one."""
    firsts = world.languages[1 :: world.config.languages]
    seconds = world.languages[2 :: world.config.languages]
    nexts = [*firsts[1:], firsts[0]]
    within = [f"{one}-{other}" for one, other in zip(firsts, seconds, strict=True)]
    return [*within, *(f"{one}-{other}" for one, other in zip(firsts, nexts, strict=True))]
