"""What every room needs: errors, pairs, tables, files, the artifact, processes, provenance."""

from typing import TYPE_CHECKING

from nspec_hf.core.lazy import attach

if TYPE_CHECKING:
    from nspec_hf.core.lazy import OPTIONAL_PARTS as OPTIONAL_PARTS, optional as optional
    from nspec_hf.core.errors import (
        ArtifactError as ArtifactError,
        ConfigError as ConfigError,
        CorpusError as CorpusError,
        EmptyPairError as EmptyPairError,
        ExportError as ExportError,
        FolderInUseError as FolderInUseError,
        MissingPartError as MissingPartError,
        NotFiniteError as NotFiniteError,
        NspecError as NspecError,
        OverloadError as OverloadError,
        RoutingError as RoutingError,
        SiteMismatchError as SiteMismatchError,
        TrainingSetupError as TrainingSetupError,
        UnknownLanguageError as UnknownLanguageError,
        UnknownPairError as UnknownPairError,
        UnsupportedModelError as UnsupportedModelError,
        as_names as as_names,
        require as require,
        is_number as is_number,
        require_count as require_count,
        require_share as require_share,
        require_weight as require_weight,
        warn as warn,
    )
    from nspec_hf.core.settings import (
        check_settings_files as check_settings_files,
        holds as holds,
        listed as listed,
        needs as needs,
        unused as unused,
        warn_unused as warn_unused,
        with_lists as with_lists,
    )
    from nspec_hf.core.pairs import (
        MANY_TO_ONE as MANY_TO_ONE,
        ONE_TO_MANY as ONE_TO_MANY,
        ZERO_SHOT as ZERO_SHOT,
        Pair as Pair,
        as_pairs as as_pairs,
        by_pair as by_pair,
        translation_pairs as translation_pairs,
        english_centric as english_centric,
        in_short as in_short,
        is_english as is_english,
        languages_of as languages_of,
        main_language as main_language,
        numbered as numbered,
        pair_index as pair_index,
        pair_or_both as pair_or_both,
        pivot_of as pivot_of,
        zero_shot as zero_shot,
    )
    from nspec_hf.core.tables import (
        Cell as Cell,
        Table as Table,
        TableFormat as TableFormat,
        join_tables as join_tables,
    )
    from nspec_hf.core.files import (
        PACKED as PACKED,
        as_line as as_line,
        atomic_write as atomic_write,
        decode_line as decode_line,
        digest as digest,
        file_digest as file_digest,
        plain as plain,
        raw_lines as raw_lines,
        read_json as read_json,
        read_lines as read_lines,
        write_json as write_json,
        write_lines as write_lines,
        write_text as write_text,
    )
    from nspec_hf.core.folders import (
        atomic_folder as atomic_folder,
        claim_folder as claim_folder,
        lock_folder as lock_folder,
        require_new as require_new,
        require_writable as require_writable,
        try_lock as try_lock,
    )
    from nspec_hf.core.artifact import (
        FORMAT as FORMAT,
        check_packed as check_packed,
        pack as pack,
        packed_width as packed_width,
        read_artifact as read_artifact,
        unpack as unpack,
        write_artifact as write_artifact,
    )
    from nspec_hf.core.distributed import (
        add_up as add_up,
        as_often as as_often,
        gather as gather,
        generating as generating,
        in_step as in_step,
        is_spread as is_spread,
        part as part,
        rank as rank,
        real_rows as real_rows,
        whole as whole,
        world_size as world_size,
    )
    from nspec_hf.core.provenance import (
        adapters_and_base as adapters_and_base,
        usable_cores as usable_cores,
        versions as versions,
        write_result as write_result,
    )
    from nspec_hf.core.allocator import keep_freed_memory as keep_freed_memory
    from nspec_hf.core.invocation import (
        exit_status as exit_status,
        program as program,
        quiet_libraries as quiet_libraries,
    )

__getattr__, __dir__, __all__ = attach(__name__)
