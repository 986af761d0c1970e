"""What strop's own tests run on, and nobody else's: scenes, faults, processes, tables of options.

What `check_trainer` needs is in `strop.testing`, which is part of the package.
"""
