"""Where the pieces meet: one engine (`base`), one file per method."""
