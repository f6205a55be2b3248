"""The command line: arguments, the commands, signals, standard streams."""
