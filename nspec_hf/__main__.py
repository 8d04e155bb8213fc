"""`python -m nspec_hf` is `nspec`."""

import sys

from nspec_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
