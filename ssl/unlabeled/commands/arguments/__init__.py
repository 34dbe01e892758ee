"""What a command was given: by typing it, by a path in place of a source, by keywords in Python."""
