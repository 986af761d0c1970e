"""What a user may set: how a setting is declared, the settings all methods share, those of online methods."""
