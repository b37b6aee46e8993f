"""zaya_cli: the voice of `zaya`. It reads options, runs a stage and draws its events; it computes nothing."""
