"""Look at the neurons: who shares them, what they do, and one page that shows it."""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.analysis.result import Result as Result, site_label as site_label
    from nspec_hf.analysis.mask_overlap import (
        find_pivot as find_pivot,
        overlap as overlap,
        progression as progression,
    )
    from nspec_hf.analysis.language_families import (
        LanguageTree as LanguageTree,
        language_tree as language_tree,
    )
    from nspec_hf.analysis.ablation import Ablation as Ablation, ablate as ablate
    from nspec_hf.analysis.sweeps import stability as stability
    from nspec_hf.analysis.gain_tables import gains as gains
    from nspec_hf.analysis.probing import (
        masked_gains as masked_gains,
        recordings as recordings,
        scorer as scorer,
    )
    from nspec_hf.analysis.analysis import Analysis as Analysis, analyze as analyze, file_name as file_name
    from nspec_hf.analysis.figures.style import (
        BLUE as BLUE,
        ORANGE as ORANGE,
        RED as RED,
        Figure as Figure,
        save_figure as save_figure,
    )
    from nspec_hf.analysis.figures.neurons import draw_overlap_layers as draw_overlap_layers
    from nspec_hf.analysis.figures.gains import (
        draw_ablation as draw_ablation,
        draw_setting_gains as draw_setting_gains,
        draw_stability as draw_stability,
    )
    from nspec_hf.analysis.figures.tradeoffs import (
        Panel as Panel,
        Series as Series,
        draw_tradeoffs as draw_tradeoffs,
    )
    from nspec_hf.analysis.figures.registry import draw_all as draw_all
    from nspec_hf.analysis.report.page import write_report as write_report

__getattr__, __dir__, __all__ = attach(__name__)
