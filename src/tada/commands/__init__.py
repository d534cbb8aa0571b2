"""The commands of the command line, a chapter each: their arguments, and what they print."""
