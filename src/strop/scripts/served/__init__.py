"""A folder that processes started by a script find on their path: its module `trl` is strop."""
