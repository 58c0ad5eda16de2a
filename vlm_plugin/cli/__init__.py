"""The command line: one file a command, nothing but arguments and a call; and what the scripts of a checkout call."""
