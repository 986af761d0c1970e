"""The sandbox of code rewards: a program that a policy sampled is hostile input.

limits, protocol   what a run may use; what a place that runs programs must offer
wall, seccomp      bubblewrap: own namespaces, nothing visible but an interpreter
fences             what there is where no wall can be built, and what it lacks
places             which of them is here
running            one process under way: streams, deadline, memory of its tree
inside             the first code inside: limits, then the program
values, serving    plain values over a pipe; the program answers calls
judging, remote    the tests, in a process of their own; stand-ins for the program's objects
"""
