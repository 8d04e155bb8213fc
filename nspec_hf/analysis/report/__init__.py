"""One HTML page that loads nothing."""
