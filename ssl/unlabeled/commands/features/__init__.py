"""Commands on what the features of a network are for."""
