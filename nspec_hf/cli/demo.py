"""What `nspec demo` does."""

from nspec_hf import data, demo as demo_room
from nspec_hf.core import ConfigError, require_count

_RECORDED = 300  # sentences of each direction whose activations are counted


def demo(
    output: str = "demo_out",
    seed: int = 1,
    families: int = 3,
    languages: int = 3,
    sentences: int = 4000,
    updates: int = 1000,
    more_updates: int = 250,
    test_sentences: int = 200,
    trials: int = 1000,
    random_masks: bool = True,
) -> None:
    """Run the whole method on made-up language families: text → base → record → select → train → compare.

    Takes a few minutes on two processor cores and downloads nothing. Prints BLEU of every direction before
    and after, with a paired significance test, and shows that languages of one family share neurons. Run it
    again after a stop and it goes on; when it is done, open report.html in the output folder.

    Example: nspec demo --output demo_out

    Args:
        output: Folder that everything is written to.
        seed: Decides the languages, the text, the first weights and the order of the data.
        families: Number of language families besides the pivot, 2 to 15.
        languages: Number of languages in each family, 2 to 12.
        sentences: Training sentences, each in all languages.
        updates: Training steps of the base.
        more_updates: Further steps of each compared system.
        test_sentences: Unseen sentences that are translated for each direction.
        trials: Of the significance test.
        random_masks: Whether to train the control with random masks too.
    """
    if families < 2 or languages < 2:
        raise ConfigError(f"kinship needs 2 families of 2 languages, got {families} families of {languages}")
    require_count("languages", languages, 2, 12)
    require_count("families", families, 2, 15)
    require_count("seed", seed, 0)
    counts = {"sentences": sentences, "updates": updates, "more_updates": more_updates, "trials": trials}
    for name, count in {**counts, "test_sentences": test_sentences}.items():
        require_count(name, count)
    demo_room.tour(
        output,
        data.SyntheticConfig(seed=seed, families=families, languages=languages),
        {"train": sentences, "valid": _RECORDED, "test": test_sentences},
        updates=updates,
        more_updates=more_updates,
        trials=trials,
        random_masks=random_masks,
    )
