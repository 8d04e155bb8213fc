"""The folder that masks are saved in, here and on the Hub: which files, what is in them, how they get there.

Shape letters: P = pairs, F = neurons of a site.

    nspec_masks.safetensors   the truth: packed bits and the recipe; the other files can be lost
    nspec_config.json         a readable copy of what is not bits
    config.json               small; the Hub counts its downloads
    README.md                 the model card
    figures/                  the card's images, where there are any
    nspec_stats.safetensors   what the masks were selected from, where it is given
"""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from huggingface_hub import CommitInfo
from torch import Tensor

from nspec_hf.core import (
    ArtifactError,
    ConfigError,
    Pair,
    as_pairs,
    atomic_write,
    digest,
    file_digest,
    pack,
    read_artifact,
    require,
    unpack,
    warn,
    write_artifact,
)
from nspec_hf.masks.bits import PackedMasks, check_booleans
from nspec_hf.masks.model_card import card_text
from nspec_hf.masks.readable import CONFIG_FILE, MASKS_FILE, warn_of_older, warn_of_other_copy, write_texts
from nspec_hf.masks.repository import (
    facts_without_paths,
    fetch,
    last_part,
    prepare,
    stats_without_paths,
    upload,
)
from nspec_hf.masks.select import Recipe
from nspec_hf.recording import ActivationStats, Site, site_from_name

KIND = "nspec_masks"
STATS_FILE = "nspec_stats.safetensors"
FIGURES = "figures"


class SavedMasks:
    """Tensors of masks, checked; saving, loading and publishing them. `NeuronMasks` says how they are made.

    The arguments are attributes too, and so is `sites`: the gated linears. Sites of the model that are not
    among them stay dense.

    Args:
        pairs: At least one, in the order of `pair_ids`.
        keep: Site name → boolean [P, F], on any device, to be packed; or the `keep` of other masks. The
            attribute makes the tensors of the bits that are kept each time one is asked for.
        general: Masks by importance: site name → boolean [F] for the same sites, the neurons that all pairs
            keep. Else None.
        recipe: Where the masks come from.
        levels: The same pairs' and sites' masks at other coverages, for one model that is to run at several:
            coverage → what `keep` is at it; `NeuronMasks.at` gives them.

    Raises:
        ConfigError: If there is no pair or site, a tensor has another type or shape, a general neuron is not
            kept by every pair, or a level has other pairs, sites or widths.
    """

    def __init__(
        self,
        pairs: Iterable[str],
        keep: Mapping[str, Tensor],
        *,
        general: Mapping[str, Tensor] | None = None,
        recipe: Recipe | None = None,
        levels: Mapping[float, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.pairs: list[Pair] = as_pairs(pairs)
        if not self.pairs or not keep:
            raise ConfigError(f"masks need a pair and a site, got {len(self.pairs)} pairs, {len(keep)} sites")
        self.keep = _packed(keep, len(self.pairs))
        held, named = {count for count, _ in self.keep.shapes().values()}, len(self.pairs)
        require(held == {named}, f"keep has masks of {min(held)} pairs, but {named} are named; see `subset`")
        self.general: Mapping[str, Tensor] | None = None if general is None else self._checked(general)
        self.recipe: Recipe = recipe or Recipe()
        self.sites: list[Site] = [site_from_name(name, self.keep.at(name).width) for name in self.keep]
        self._fingerprint = ""
        self.levels: dict[float, PackedMasks] = {
            float(level): _packed(kept, len(self.pairs)) for level, kept in sorted((levels or {}).items())
        }
        for level, kept in self.levels.items():
            same = kept.shapes() == self.keep.shapes()
            require(same, f"the masks of level {level:g} have other pairs, sites or widths than the masks")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Share them, as a copied model's gate does: what is read-only may be."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Let pickle make the masks again, as it does with a model that has a gate on it."""
        general = None if self.general is None else dict(self.general)
        again = partial(type(self), general=general, recipe=self.recipe, levels=self.levels)
        return again, (list(self.pairs), self.keep)

    def __eq__(self, other: object) -> bool:
        """Return whether pairs with their order, sites and neurons are the same; recipes may differ."""
        return isinstance(other, SavedMasks) and self.fingerprint() == other.fingerprint()

    def __hash__(self) -> int:
        """Return the hash of what is compared."""
        return hash(self.fingerprint())

    def fingerprint(self) -> str:
        """Return 16 hex digits for pairs, sites (in any order) and neurons; levels do not count."""
        if not self._fingerprint:
            general = sorted((self.general or {}).items())
            parts = (
                *((json.dumps(f"general/{name}"), pack(general_F).numpy()) for name, general_F in general),
                *((json.dumps(f"keep/{name}"), self.keep.at(name).in_order()) for name in sorted(self.keep)),
            )
            widths = sorted((site.name, site.width) for site in self.sites)
            self._fingerprint = digest(list(self.pairs), widths, (each for part in parts for each in part))
        return self._fingerprint

    def save(self, path: str | os.PathLike) -> None:
        """Write the masks' file alone, `nspec_masks.safetensors` by custom (into a checkpoint, say).

        Raises:
            OSError: If it cannot be written; a file that was there before is then still whole.
        """
        write_artifact(path, self._packed(), self._described(), KIND)

    def save_pretrained(
        self,
        folder: str | os.PathLike,
        *,
        repo: str | None = None,
        model: str | None = None,
        stats: ActivationStats | None = None,
        figures: Sequence[str | os.PathLike] = (),
        use: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the folder that `from_pretrained` reads.

        A `config.json` or README.md of something else (a model that lies there) is kept, with a warning; so
        are statistics and figures that lie there beside other masks.

        Args:
            folder: Made where it does not exist.
            repo: Id that the card's snippet loads the masks from; the folder's name if not given.
            model: Id or path of the model that the snippet loads: the specialized one. The base if not given.
            stats: What the masks were selected from, to be saved beside them.
            figures: Image files to copy and to show in the card.
            use: What `nspec_hf.load` needs beyond masks and `model`: `gate` (settings of the gate), the
                model's `revision` and the `fingerprint` of its weights.

        Raises:
            ConfigError: If two figures have one file name.
            OSError: If a file cannot be read or written; the masks' file is then the old one or the new
                one, whole.
        """
        folder = Path(folder)
        # Read and rendered before anything is written, so that what is missing is missed now.
        images = {f"{FIGURES}/{Path(figure).name}": Path(figure).read_bytes() for figure in figures}
        if len(images) < len(figures):
            raise ConfigError(f"two figures have one file name: {', '.join(map(str, figures))}")
        card = card_text(self, repo=repo or folder.resolve().name, model=model, figures=list(images))
        others = sorted({*folder.glob(f"{FIGURES}/*")} - {folder / name for name in images})
        statistics = folder / STATS_FILE if stats is None else None
        warn_of_older(folder, self.fingerprint(), self.recipe, statistics, others)
        self.save(folder / MASKS_FILE)
        same = {"fingerprint": self.fingerprint(), "file": file_digest(folder / MASKS_FILE)}
        write_texts(folder, {**same, **self._described()}, card, {"model": model, **(use or {})})
        for name, image in images.items():
            with atomic_write(folder / name) as file:
                file.write(image)
        if stats is not None:
            stats.save(folder / STATS_FILE)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repo: str | os.PathLike,
        revision: str | None = None,
        subfolder: str = "",
        **download: Any,
    ) -> Self:
        """Read masks from a folder, their file, or a Hub repository.

        Args:
            folder_or_repo: A path, or the id of a repository.
            revision: Of the repository: a branch, tag or commit.
            subfolder: Folder inside it, where it holds several sets of masks.
            download: For `huggingface_hub.snapshot_download`: `token`, `cache_dir`, `local_files_only` …

        Raises:
            ArtifactError: If the file is cut off, altered, of another kind or of a newer format.
            FileNotFoundError: If there are no masks, or it is neither a folder nor a repository.
            huggingface_hub.errors.RevisionNotFoundError: If the repository has no such revision.
        """
        path = Path(folder_or_repo)
        if not path.is_file():
            # config.json too: its requests are what the Hub counts as downloads.
            files = [MASKS_FILE, CONFIG_FILE]
            path = fetch(folder_or_repo, files, revision, subfolder, download) / MASKS_FILE
            if not path.is_file():
                where = f"{folder_or_repo}{f' ({subfolder})' if subfolder else ''}"
                raise FileNotFoundError(f"{where} holds no {MASKS_FILE}; was it made by save_pretrained?")
        tensors, stated = read_artifact(path, KIND, mapped=True)
        try:
            widths = {str(site["name"]): int(site["width"]) for site in stated["sites"]}
            recipe = Recipe(**{**stated["recipe"], "derived": tuple(stated["recipe"]["derived"])})
            require(bool(stated["pairs"]), "masks need a pair")
            count = len(stated["pairs"])
            keep = PackedMasks.read(tensors, widths, count)
            levels = {
                level: PackedMasks.read(tensors, widths, count, within=f"{level!r}/")
                for level in map(float, stated.get("levels", ()))
            }
            general = None
            if stated["general"]:
                general = {name: unpack(tensors.pop(f"general/{name}"), widths[name]) for name in widths}
            masks = cls(stated["pairs"], keep, general=general, recipe=recipe, levels=levels)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ArtifactError(f"{path} does not describe masks ({error!r}); save them again") from error
        if tensors:
            others = ", ".join(sorted(tensors))
            raise ArtifactError(f"{path} holds tensors that it does not describe: {others}")
        warn_of_other_copy(path)
        return masks

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        subfolder: str = "",
        message: str = "Upload neuron masks",
        **contents: Any,
    ) -> CommitInfo:
        """Upload what `save_pretrained` writes in one commit; the repository is made where there is none.

        Statistics and figures of earlier masks go. Paths of this machine stay here: a folder that the recipe
        or the statistics name goes by its last part. Only the base that the card's snippet has to load keeps
        its path, with a warning; give `model`.

        Args:
            repo: Its id, `user/name`.
            private: Whether a new repository is private; the account's default if not given.
            token: Of the Hub; the one that is logged in if not given.
            revision: A branch, made where there is none; main if not given.
            subfolder: Folder inside the repository, where it is to hold several sets of masks.
            message: Of the commit.
            contents: `model`, `stats`, `figures` and `use` of `save_pretrained`.

        Returns:
            The Hub's answer; its `oid` is a `revision` for `from_pretrained`.

        Warns:
            UserWarning: If the card names a folder of this machine.
        """
        published = self.without_paths(contents.get("model"))
        if contents.get("stats") is not None:
            contents["stats"] = stats_without_paths(contents["stats"])
        with tempfile.TemporaryDirectory() as folder:
            published.save_pretrained(folder, repo=repo, **contents)
            repo, parent = prepare(repo, private=private, token=token, revision=revision)
            return upload(
                Path(folder),
                repo,
                parent,
                subfolder=subfolder,
                token=token,
                revision=revision,
                message=message,
                replaces=(STATS_FILE, f"{FIGURES}/*"),
            )

    def without_paths(self, model: str | None = None) -> Self:
        """Return the same masks, whose recipe names folders of this machine by their last part.

        Only the base that has to be loaded keeps its path, with a warning, where no `model` is given.

        Args:
            model: Id of the repository of the model that they go with.
        """
        loaded = model or self.recipe.base_model
        if last_part(loaded) != loaded:
            warn(
                f"the card that is uploaded names a folder of this machine, {loaded}, which others cannot "
                "load; give the id of the model's repository: push_to_hub(…, model='user/name')"
            )
        base, corpus = self.recipe.base_model, facts_without_paths(self.recipe.corpus)
        recipe = replace(self.recipe, base_model=last_part(base) if model else base, corpus=corpus)
        return type(self)(self.pairs, self.keep, general=self.general, recipe=recipe, levels=self.levels)

    def _packed(self) -> dict[str, Tensor]:
        """Return the packed bits: those of `PackedMasks.tensors`, `general/<site>` [ceil(F / 8)], levels.

        A level has the names of `PackedMasks.tensors` after its coverage: `0.8/keep/<site>`.
        """
        general = {f"general/{name}": pack(general_F) for name, general_F in (self.general or {}).items()}
        packed = self.keep.tensors() | general
        for level, kept in self.levels.items():
            packed |= kept.tensors(within=f"{level!r}/")
        return packed

    def _described(self) -> dict[str, Any]:
        """Return all that is not bits, as JSON values."""
        return {
            "pairs": [str(pair) for pair in self.pairs],
            "sites": [{"name": site.name, "width": site.width} for site in self.sites],
            "general": self.general is not None,
            "recipe": asdict(self.recipe),
            **({"levels": list(self.levels)} if self.levels else {}),
        }

    def _checked(self, general: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return copies of general neurons, which were found to fit the masks."""
        for name, general_F in general.items():
            check_booleans(name, general_F)
        other = sorted(set(general) ^ set(self.keep))
        require(not other, f"general neurons must be of the same sites; not in both: {', '.join(other)}")
        for name, general_F in general.items():
            site, shape = self.keep.at(name), list(general_F.shape)
            require(shape == [site.width], f"general[{name!r}] must have shape [{site.width}], got {shape}")
            kept = not (pack(general_F) & ~site.bits.tensor).any()
            require(kept, f"a general neuron of {name!r} is silenced for a pair; all pairs keep it")
        return MappingProxyType({name: general[name].detach().cpu().clone() for name in general})


def _packed(keep: Mapping[str, Tensor], pairs: int) -> PackedMasks:
    return keep if isinstance(keep, PackedMasks) else PackedMasks.of(keep.items(), pairs)
