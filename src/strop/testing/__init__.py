"""What tests of strop, and of trainers built on it, run on. Nothing but tests imports this package."""
