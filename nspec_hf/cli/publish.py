"""What `nspec publish` does."""

import sys
from collections.abc import Mapping, Sequence

from nspec_hf import evaluation, recording, serving
from nspec_hf.core import needs


@needs(model_revision="model", dataset="scores")
def publish(
    run: str,
    repo: str,
    model: str | None = None,
    model_revision: str | None = None,
    base: str | None = None,
    subfolder: str = "",
    scores: Sequence[str] = (),
    comparison: str | None = None,
    dataset: str = "",
    stats: str | None = None,
    families: Mapping[str, str] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = "Upload neuron masks",
) -> None:
    """Upload masks, card, scores, significance, heat map and report to the Hub, in one commit.

    Example: nspec publish --run runs/mine --repo me/my-masks --model me/my-model

    `nspec_hf.load('me/my-masks')` and `nspec serve --model me/my-masks` take it from there. A push that is
    interrupted has changed nothing; do it again.

    Args:
        run: Folder of a run (model/ and masks/), or of masks.
        repo: Id of the repository, user/name or organization/name; made where there is none.
        model: Id of the repository that the model lies in which the masks go with; null: the base that was
            counted, as long as it was not trained since.
        model_revision: Its revision.
        base: Folder of that model here, where it does not lie beside the masks.
        subfolder: Folder for these masks, where the repository is to hold several sets.
        scores: JSON files that `nspec evaluate --output` wrote, one a system, the published one the last.
        comparison: JSON file that `nspec compare --output` wrote.
        dataset: What the scores were made on: 'multi30k test_2016_flickr'.
        stats: File of the statistics that the masks were selected from, to be uploaded beside them.
        families: Language → family, for the heat map; null takes those known of the
            languages of M2M-100, mBART and NLLB.
        private: Whether a new repository is private; null: the account's default.
        revision: A branch, made where there is none; null: main.
        message: Of the commit.
    """
    # What is read is read before anything is made on the Hub.
    systems = [evaluation.SystemScores.load(path) for path in scores]
    compared = evaluation.Comparison.load(comparison) if comparison else None
    counted = recording.ActivationStats.load(stats) if stats else None
    info = serving.publish(
        serving.load(run, base=base),
        repo,
        model=model,
        model_revision=model_revision,
        subfolder=subfolder,
        scores=systems,
        comparison=compared,
        dataset=dataset,
        stats=counted,
        families=families,
        private=private,
        revision=revision,
        message=message,
    )
    sys.stdout.write(f"{info.commit_url}\n")
