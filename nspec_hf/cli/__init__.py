"""The commands: `nspec COMMAND …`."""
