"""The two-minute tour: the whole method on made-up language families."""
