"""One file a subcommand: a frozen config in, a stream of events out.

Heavy imports wait inside `run`, so that a command's --help does not load torch.
"""
